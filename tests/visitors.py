"""Visitors of the served app without a browser: the page, its websocket, and whatever the server then sends; hundreds of them are cheap."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import websocket_connect


class Visitor:
    """Somebody with a page open, inside an ``async with``.

    Args:
        url: Of the page.

    Attributes:
        said: All that the server has sent, as one text.
        messages: How many messages that were.
    """

    def __init__(self, url: str) -> None:
        self.url, self.said, self.messages = url, "", 0

    async def __aenter__(self) -> Visitor:
        got = await AsyncHTTPClient().fetch(self.url, request_timeout=120, connect_timeout=120)
        token = re.search(r'"token":"([^"]+)"', got.body.decode())
        assert token, "a page without a session"
        at = urlsplit(self.url)
        socket = f"ws://{at.netloc}{at.path.rstrip('/')}/ws" + (f"?{at.query}" if at.query else "")
        request = HTTPRequest(socket, headers={"Origin": f"http://{at.netloc}"}, request_timeout=120, connect_timeout=120)
        self._socket: Any = await websocket_connect(request, subprotocols=["bokeh", token[1]], max_message_size=1 << 28)
        assert await self._socket.read_message() is not None, "no acknowledgement"
        self._reading = asyncio.create_task(self._read())
        for part in ({"msgid": "1", "msgtype": "PULL-DOC-REQ"}, {}, {}):  # as a page asks for what it shows
            await self._socket.write_message(json.dumps(part))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        await self._reading

    async def _read(self) -> None:
        while (message := await self._socket.read_message()) is not None:
            self.messages += 1
            if isinstance(message, str):
                self.said += message

    async def sees(self, words: str, patience: float = 60.0) -> None:
        """Wait until the server has sent some words."""
        async with asyncio.timeout(patience):
            while words not in self.said:
                await asyncio.sleep(0.02)


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
