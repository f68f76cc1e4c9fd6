"""Visitors of the served app without a browser: requests as they stand, a login, a page's session, and hundreds of open pages."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any
from unittest import mock
from urllib.parse import urlencode, urlsplit

from bokeh.client.session import ClientSession
from bokeh.document.events import MessageSentEvent
from bokeh.events import ButtonClick
from bokeh.util.token import get_session_id
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

Answer = tuple[int, dict[str, str], str]


def sent(url: str, path: str, method: str = "GET", fields: dict[str, str] | None = None, **headers: str) -> Answer:
    """A request as it stands, which follows nothing: status, headers and text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]), timeout=60)
    kind = {"Content-Type": "application/x-www-form-urlencoded"} if fields is not None else {}
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, urlencode(fields) if fields is not None else None, {**kind, **named})
        answer = connection.getresponse()
        body = "" if answer.status == 101 else answer.read().decode("utf-8", "replace")
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body
    finally:
        connection.close()


def tried(url: str, user: str, password: str, next: str = "/", **headers: str) -> Answer:
    """An attempt to log in, as the form sends it."""
    origin = {"Origin": url.rstrip("/"), **headers}
    return sent(url, "/login", "POST", {"user": user, "password": password, "next": next}, **origin)


def cookie(url: str, user: str, password: str) -> str:
    """The cookie of a new login."""
    status, headers, body = tried(url, user, password)
    assert status == 303, body
    return headers["set-cookie"].partition(";")[0]


def token(url: str, page: str, cookie: str = "") -> str:
    """What a page gives its browser for the websocket."""
    status, _, body = sent(url, page, **({"Cookie": cookie} if cookie else {}))
    assert status == 200, status
    return token_in(body)


def token_in(body: str) -> str:
    """The same from the page's text."""
    return re.search(r'"token":"([^"]+)"', body)[1]


def shaken(url: str, page: str, given: str, **headers: str | None) -> int:
    """The status of a websocket's handshake with a token; a header that is None is left out."""
    handshake = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
                 "Sec_WebSocket_Version": "13", "Sec_WebSocket_Protocol": f"bokeh, {given}", "Origin": url.rstrip("/")}  # fmt: skip
    told = {name: value for name, value in {**handshake, **headers}.items() if value is not None}
    return sent(url, f"{page.partition('?')[0].rstrip('/')}/ws", **told)[0]


def cut_off(url: str, page: str, cookie: str, deed: Callable[[], object], within: float = 15.0) -> bool:
    """Whether the server ends a page's websocket within so many seconds of a deed."""
    given = token(url, page, cookie)

    async def watched() -> bool:
        address = f"ws{url.removeprefix('http').rstrip('/')}{page.partition('?')[0].rstrip('/')}/ws"
        socket = await websocket_connect(HTTPRequest(address, headers={"Cookie": cookie}), subprotocols=["bokeh", given])
        await socket.read_message()  # it is up
        await asyncio.to_thread(deed)
        try:
            async with asyncio.timeout(within):
                while await socket.read_message() is not None:
                    pass
            return True
        except TimeoutError:
            socket.close()
            return False

    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, watched()).result()


@contextmanager
def session(url: str, page: str, cookie: str) -> Iterator[ThreadPoolExecutor | Any]:
    """A page's session over its websocket, as somebody holds it who writes their own messages; see :class:`Held`."""
    with ThreadPoolExecutor(1) as apart:  # Playwright's loop runs in this thread
        held = apart.submit(Held, url, page, cookie).result()
        try:
            yield _Apart(apart, held)
        finally:
            apart.submit(held.session.close).result()


class Held:
    """A session that Bokeh's client holds, with the cookie and the token of a page."""

    def __init__(self, url: str, page: str, cookie: str) -> None:
        given = token(url, page, cookie)
        kind = type("Session", (ClientSession,), {"token": property(lambda _: given)})
        name = page.partition("?")[0].rstrip("/")
        with mock.patch("bokeh.client.connection.HTTPRequest", partial(_request, cookie)):
            self.session = kind(get_session_id(given), f"ws{url.removeprefix('http').rstrip('/')}{name}/ws")
            self.session.pull()

    def _model(self, label: str) -> Any:
        return next(m for m in self.session.document.models if getattr(m, "label", None) == label)

    def labels(self) -> dict[str, tuple[bool, bool]]:
        """Buttons by label, each with whether it is seen and whether it is off."""
        return {m.label: (m.visible, m.disabled) for m in self.session.document.models if hasattr(m, "label") and hasattr(m, "button_type")}

    def click(self, label: str) -> None:
        """Send a button's click, whether or not it is seen and can be pressed."""
        event = MessageSentEvent(self.session.document, "bokeh_event", ButtonClick(self._model(label)))
        self.session._connection._send_patch_document(self.session.id, event)
        self.session.force_roundtrip()

    def set(self, model: str, **values: Any) -> None:
        """Set values of the model that has that title."""
        found = next(m for m in self.session.document.models if getattr(m, "title", None) == model or getattr(m, "label", None) == model)
        found.update(**values)
        self.session.force_roundtrip()

    def texts(self) -> str:
        """All texts of the page as it is now."""
        self.session.pull()
        return " ".join(m.text for m in self.session.document.models if isinstance(getattr(m, "text", None), str))


class _Apart:
    def __init__(self, apart: ThreadPoolExecutor, held: Held) -> None:
        self._apart, self._held = apart, held

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._apart.submit(getattr(self._held, name), *args, **kwargs).result()


def _request(cookie: str, url: str) -> Any:
    return HTTPRequest(url, headers={"Cookie": cookie})


# -- many at once, who look at what comes -----------------------------------------------------------


class Visitor:
    """Somebody with a page open, inside an ``async with``, who keeps up and says so when asked (:class:`speechlab.pulse.Echo`).

    Args:
        url: Of the page.

    Attributes:
        said: All that the server has sent, as one text.
    """

    def __init__(self, url: str) -> None:
        self.url, self.said = url, ""
        self._echoes: dict[str, str] = {}  # by the id of what asks, that of what answers

    async def __aenter__(self) -> Visitor:
        got = await AsyncHTTPClient().fetch(self.url, request_timeout=120, connect_timeout=120)
        at = urlsplit(self.url)
        socket = f"ws://{at.netloc}{at.path.rstrip('/')}/ws" + (f"?{at.query}" if at.query else "")
        request = HTTPRequest(socket, headers={"Origin": f"http://{at.netloc}"}, request_timeout=120, connect_timeout=120)
        self._socket: Any = await websocket_connect(request, subprotocols=["bokeh", token_in(got.body.decode())], max_message_size=1 << 28)
        assert await self._socket.read_message() is not None, "no acknowledgement"
        self._reading = asyncio.create_task(self._read())
        event = {"type": "event", "name": "document_ready", "values": {"type": "map"}}
        ready = {"events": [{"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": event}]}
        for i, (kind, content) in enumerate({"PULL-DOC-REQ": {}, "PATCH-DOC": ready}.items()):  # as a page asks, and then says it is there
            for part in ({"msgid": str(i), "msgtype": kind}, {}, content):
                await self._socket.write_message(json.dumps(part))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        await self._reading

    async def _read(self) -> None:
        while (message := await self._socket.read_message()) is not None:
            if isinstance(message, str):
                self.said += message
                await self._answer(message)

    async def _answer(self, message: str) -> None:
        if '"title":"asked"' in message:
            found = list(_titled(json.loads(message)))
            asked, answered = ([id for title, id in found if title == wanted] for wanted in ("asked", "answered"))
            self._echoes |= dict(zip(asked, answered, strict=True))
        for model, value in re.findall(r'"kind":"ModelChanged","model":\{"id":"([^"]+)"\},"attr":"value","new":(\d+)', message):
            if model in self._echoes:
                change = {"kind": "ModelChanged", "model": {"id": self._echoes[model]}, "attr": "value", "new": int(value)}
                with suppress(WebSocketClosedError):  # they leave in this moment
                    for part in ({"msgid": f"answer {value}", "msgtype": "PATCH-DOC"}, {}, {"events": [change]}):
                        await self._socket.write_message(json.dumps(part))

    async def sees(self, words: str, patience: float = 60.0) -> None:
        """Wait until the server has sent some words."""
        async with asyncio.timeout(patience):
            while words not in self.said:
                await asyncio.sleep(0.02)


def _titled(part: Any) -> Iterator[tuple[str, str]]:
    """Titles and ids of all models in a message that have a title."""
    if isinstance(part, dict) and "title" in part.get("attributes", {}):
        yield part["attributes"]["title"], part["id"]
    if isinstance(part, dict | list):
        for child in part.values() if isinstance(part, dict) else part:
            yield from _titled(child)


def visit(urls: list[str], together: Any) -> Any:
    """Open pages at once and do something with their visitors.

    Args:
        urls: Of the pages.
        together: An async function of the list of visitors.
    """

    async def all_() -> Any:
        AsyncHTTPClient.configure(None, max_clients=len(urls) + 1)
        async with AsyncExitStack() as stack:
            visitors = await asyncio.gather(*(stack.enter_async_context(Visitor(url)) for url in urls))
            return await together(visitors)

    return asyncio.run(all_())
