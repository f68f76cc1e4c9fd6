"""The login of the served pages: by password from a file of users, or by an OAuth service; and who a page's visitor is.

Notable: a cookie holds a name, a number of its own and a stamp of the user's hash, all signed; it is good for a week, and no longer than
the user is in the file with that password, nor after logging out. Bokeh's session tokens, which the browser sends back when it opens
the websocket, are signed too and say whose page it is; a websocket is let in only with the cookie of the same login, so a session
that one made is of no use to another. Panel's own login (1.9) is not used: it compares passwords as they stand, follows
``next=///elsewhere``, lets one guess as fast as one can, and sets cookies without ``SameSite``. Its OAuth is used, within the same
bounds, and without keeping the service's tokens.

Not covered: who knows a name can make whoever has it wait, up to a minute at a time; logging out of the OAuth service; a login that was
copied before it was logged out is good again when the server starts anew, until the week is over or the password is changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote
from weakref import WeakSet

import panel as pn
from bokeh.util.token import check_token_signature, get_token_payload
from panel.auth import AUTH_PROVIDERS
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import PeriodicCallback
from tornado.web import HTTPError, RequestHandler, create_signed_value, decode_signed_value
from tornado.websocket import WebSocketHandler

from speechlab.errors import InputError, did_you_mean
from speechlab.markup import Html
from speechlab.units import Seconds
from speechlab.users import LONGEST, Role, Users

DAYS = 7.0  # that a login is good for
SWEEP = 2000  # ms between looks whether those who watch still may
FREE, MOST = 4, 60.0  # wrong passwords before one has to wait, and the longest wait in seconds
HEADER = "Speechlab-Visitor"  # of a session's request: whose it is; what a client sends by that name is dropped
SERVICES = sorted(set(AUTH_PROVIDERS) - {"password", "pam"})  # those two ask for the password themselves
KEYS = ("PANEL_OAUTH_KEY", "PANEL_OAUTH_SECRET")

log = logging.getLogger(__name__)
_checking = ThreadPoolExecutor(1, thread_name_prefix="login")  # one at a time: a check takes 32 MB
_open: dict[str, Login] = {}  # the logins of this process's servers, by their cookies' names


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page.

    Attributes:
        name: Of the user.
        role: As the file has it now.
    """

    name: str
    role: Role


class Login:
    """The login of one server.

    Args:
        users: Who may come in.
        port: Of the server; cookies of a host's several servers differ by it.
        secure: Whether browsers are to send the cookie over TLS alone.
        service: An OAuth service, one of :data:`SERVICES`; empty is the file's passwords.

    Raises:
        InputError: if the file or the secret cannot be used, nobody stands in it, or the service is unknown or has no key.
    """

    def __init__(self, users: Users, port: int, secure: bool, service: str = "") -> None:
        if not users.all():
            raise InputError("Nobody could log in.", got=f"no user in {users.path}", do="speechlab user NAME --role operator")
        if service and service not in SERVICES:
            raise InputError("There is no such OAuth service.", got=service[:40], do=did_you_mean(service, SERVICES))
        if service and (missing := [key for key in KEYS if not os.environ.get(key)]):
            raise InputError(f"{service} needs a key and a secret, from the environment alone.", got=f"no {' and no '.join(missing)}")
        self.users, self.secure, self.service = users, secure, service
        self.secret = users.secret()
        self.cookie = f"{'__Host-' if secure else ''}speechlab-{port}"
        self.patience = Patience()
        self._over: dict[str, float] = {}  # logins that were ended, until when they would have been good
        self._sockets: WeakSet[Any] = WeakSet()
        self._sweeping: PeriodicCallback | None = None
        _open[self.cookie] = self

    @property
    def bounds(self) -> dict[str, Any]:
        """Of our cookies: no script reads them, no other site sends them along but by a link, and over TLS where there is any."""
        return {"path": "/", "httponly": True, "samesite": "Lax", "secure": self.secure}

    @property
    def session_key(self) -> bytes:
        """What signs Bokeh's session tokens."""
        return hmac.digest(self.secret.encode(), b"sessions", hashlib.sha256)

    def begin(self, handler: RequestHandler, name: str) -> None:
        """Give a browser the cookie of a new login."""
        value = f"{name} {secrets.token_urlsafe(16)} {self._stamp(name)}"
        signed = create_signed_value(self.secret, self.cookie, value).decode()
        handler.set_cookie(self.cookie, signed, expires_days=DAYS, **self.bounds)

    def end(self, handler: RequestHandler) -> None:
        """End a browser's login, here and there."""
        if found := self._parts(handler.request):
            now = time.time()
            self._over = {n: until for n, until in self._over.items() if until > now} | {found[1]: now + DAYS * 86_400}
        handler.clear_cookie(self.cookie, **self.bounds)

    def visitor(self, handler: RequestHandler) -> str | None:
        """The name of who asks, whose session's request says so from here on; None lets nobody in.

        Raises:
            HTTPError: if the session is to be one that the asker names.
        """
        request = handler.request
        if {"bokeh-token", "bokeh-session-id"} & set(request.arguments) or "Bokeh-Session-Id" in request.headers:
            raise HTTPError(403, "a session is the server's to name")  # or one could be made that somebody else knows
        request.headers.pop(HEADER, None)
        found = self._parts(request)
        if not found or not self._good(*found):
            return None
        name, number, _ = found
        request.headers[HEADER] = f"{self.cookie} {quote(name)} {number}"
        if isinstance(handler, WebSocketHandler):
            if self._whose(request) != request.headers[HEADER]:
                return None
            self._watch(handler)
        return name

    def now(self, told: str) -> Visitor | None:
        """Who a session's header speaks of, if they still may look.

        Args:
            told: What :meth:`visitor` put there.
        """
        _, name, number = told.split(" ")
        user = self.users.get(unquote(name))
        return Visitor(user.name, user.role) if user and number not in self._over else None

    # -- inside -----------------------------------------------------------------------------------------

    def _stamp(self, name: str) -> str:
        """Changes with the user's password."""
        user = self.users.get(name)
        return hmac.new(self.secret.encode(), (user.hash if user else "").encode(), hashlib.sha256).hexdigest()[:32]

    def _parts(self, request: HTTPServerRequest) -> list[str] | None:
        """Name, number and stamp of a cookie that we signed within the week."""
        cookie = request.cookies.get(self.cookie)
        value = cookie and decode_signed_value(self.secret, self.cookie, cookie.value, max_age_days=DAYS, min_version=2)
        parts = value.decode("utf-8", "replace").split(" ") if value else []
        return parts if len(parts) == 3 else None

    def _good(self, name: str, number: str, stamp: str) -> bool:
        known = self.users.get(name) is not None
        return known and number not in self._over and hmac.compare_digest(stamp, self._stamp(name))

    def _whose(self, request: HTTPServerRequest) -> str:
        """Of whose page the token speaks that a websocket comes with; nobody's if it is not ours."""
        token = request.headers.get("Sec-WebSocket-Protocol", "").rpartition(",")[2].strip()
        try:
            if not check_token_signature(token, secret_key=self.session_key, signed=True):
                return ""
            return str(get_token_payload(token).get("headers", {}).get(HEADER, ""))
        except Exception:  # whatever a token that is none makes its reader raise
            return ""

    def _watch(self, socket: WebSocketHandler) -> None:
        self._sockets.add(socket)
        if self._sweeping is None:
            self._sweeping = PeriodicCallback(self._sweep, SWEEP)
            self._sweeping.start()

    def _sweep(self) -> None:
        """Close the websockets of those who may look no more."""
        for socket in list(self._sockets):
            found = self._parts(socket.request)
            if not found or not self._good(*found):
                self._sockets.discard(socket)
                socket.close(4403, "logged out")


class Patience:
    """How long one has to wait after wrong passwords: a second after :data:`FREE` of them, twice that after each further one.

    Names and addresses count apart, and a right password clears its name alone, or one's own would clear the address for guessing others'.
    """

    def __init__(self) -> None:
        self._wrong: dict[str, tuple[int, float]] = {}

    def wait(self, *keys: str) -> Seconds:
        """How long until the next attempt is heard; of nothing, it counts as a wrong one until :meth:`right` says otherwise."""
        now = time.monotonic()
        left = max((self._wrong.get(key, (0, 0.0))[1] - now for key in keys), default=0.0)
        if left > 0:
            return left
        for key in keys:
            count = self._wrong.pop(key, (0, 0.0))[0] + 1
            self._wrong[key] = count, now + (min(MOST, 2.0 ** (count - FREE)) if count >= FREE else 0.0)
        while len(self._wrong) > 10_000:
            del self._wrong[next(iter(self._wrong))]
        return 0.0

    def right(self, name: str, address: str) -> None:
        """That attempt was a right one."""
        self._wrong.pop(name, None)
        count, _ = self._wrong.pop(address, (1, 0.0))
        if count > 1:
            self._wrong[address] = count - 1, 0.0


def visitor() -> Visitor | None:
    """Who looks at the page whose code this is; None where nobody has logged in, or may look no more."""
    told = _told()
    login = _open.get(told.partition(" ")[0])
    return login.now(told) if login else None


def required() -> bool:
    """Whether a login is asked for by the server whose page's code this is, or, of code of no page, by any of this process."""
    session = pn.state.curdoc and pn.state.curdoc.session_context
    return bool(_told() if session else _open)


def _told() -> str:
    return str(pn.state.headers.get(HEADER, ""))


def within(next: str) -> str:
    """Where a login leads to, if that is a page here, else the first page.

    Args:
        next: What an address asked for; anybody may have written it.
    """
    return next if re.fullmatch(r"/(?:[^/\\\x00-\x20\x7f][^\\\x00-\x20\x7f]*)?", next) else "/"


def badge_html(visitor: Visitor | None) -> Html:
    """Who is logged in, with the way out, for a page's bar; nothing without a login."""
    if visitor is None:
        return Html("")
    style = Html(
        "nav form { margin-left: auto; overflow-wrap: anywhere; } nav form button { font: inherit; color: inherit; background: none;"
        " border: 0; text-decoration: underline; text-underline-offset: 2px; cursor: pointer; padding: .25em .5em; }"
    )
    body = Html('<style>{}</style><form method="post" action="logout">{}, {}<button>Log out</button></form>')
    return body.format(style, visitor.name, visitor.role)


# -- pages -------------------------------------------------------------------------------------------------

PAGE = Html("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · SpeechLab</title><style>
:root {{ color-scheme: light dark; --line: #8888; }}
body {{ margin: 0; font: 16px/1.45 system-ui, sans-serif; background: #fff; color: #1b1f24; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14171b; color: #e4e7eb; }} a {{ color: #7db9f5; }} }}
main {{ max-width: 22rem; margin: 12vh auto 0; padding: 1rem; }} h1 {{ font-size: 1.4em; margin: 0 0 .8em; }}
form {{ display: grid; gap: .9em; }} label {{ display: grid; gap: .25em; }}
input {{ font: inherit; color: inherit; background: transparent; border: 1px solid var(--line); border-radius: .3em; padding: .5em .6em; }}
button {{ font: inherit; background: #0072b2; color: #fff; border: 0; border-radius: .3em; padding: .6em; cursor: pointer; }}
:focus-visible {{ outline: 2px solid; outline-offset: 2px; }} [role=alert] {{ border-left: 4px solid #d55e00; padding-left: .7em; }}
</style></head><body><main><h1>{title}</h1>{body}</main></body></html>
""")
FORM = Html("""{said}<form method="post" action="login"><input type="hidden" name="next" value="{next}">
<label>Name <input name="user" value="{name}" autocomplete="username" autocapitalize="none" spellcheck="false" required></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button></form>""")


class Page(RequestHandler):
    """A page before the login: asked for under the server's own name, and sent from its own pages."""

    login: Login
    gate: Any  # turns away whoever comes by another name, or posts from elsewhere

    def prepare(self) -> None:
        """Before anything else."""
        self.gate.admit(self)
        self.set_header("Cache-Control", "no-store")

    def show(self, title: str, body: Html, status: int = 200) -> None:
        """Answer with a page of few words."""
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(str(PAGE.format(title=title, body=body)))

    def write_error(self, status_code: int, **_: Any) -> None:
        """Say that it was not to be, and where to begin again; nothing of what was sent is repeated."""
        self.show("Not let in", Html('<p role="alert">{}</p><p><a href="./login">Log in</a></p>').format(self._reason), status_code)


class LoginPage(Page):
    """Asks for name and password."""

    def get(self) -> None:
        """The form."""
        self._form(within(self.get_query_argument("next", "/")))

    async def post(self) -> None:
        """Check what was sent; who may come in goes where they wanted to."""
        name, password, next = (self.get_body_argument(field, "", strip=False) for field in ("user", "password", "next"))
        name, next, address = name.strip()[:LONGEST], within(next), str(self.request.remote_ip)
        wait = self.login.patience.wait(f"name {name}", f"from {address}")
        if wait:
            self.set_header("Retry-After", str(int(wait) + 1))
            self._form(next, f"Too many wrong passwords. Try again in {int(wait) + 1} s.", name, 429)
        elif await asyncio.get_running_loop().run_in_executor(_checking, self.login.users.check, name, password):
            self.login.patience.right(f"name {name}", f"from {address}")
            self.login.begin(self, name)
            self.redirect(next, status=303)
        else:
            log.warning("a wrong name or password from %s", address)
            self._form(next, "Name and password do not go together.", name, 403)

    def _form(self, next: str, said: str = "", name: str = "", status: int = 200) -> None:
        told = Html('<p role="alert">{}</p>').format(said) if said else ""
        self.show("Log in", FORM.format(said=told, next=next, name=name), status)


class LogoutPage(Page):
    """Ends a login."""

    def get(self) -> None:
        """Nothing is ended by an address alone, which any page can lead to."""
        self.show("Log out", Html('<form method="post" action="logout"><button>Log out</button></form>'))

    def post(self) -> None:
        """End it."""
        self.login.end(self)
        self.show("Logged out", Html('<p><a href="./login">Log in again</a></p>'))


def pages(login: Login, gate: Any) -> tuple[type[RequestHandler], type[RequestHandler]]:
    """The handlers of ``/login`` and ``/logout``, which know their server's login and gate (:mod:`speechlab.door`)."""
    about = {"login": login, "gate": gate}
    first = (_Service, AUTH_PROVIDERS[login.service]) if login.service else (LoginPage,)
    return type("Login", first, about), type("Logout", (LogoutPage,), about)


class _Service(Page):
    """Before Panel's handler of an OAuth service: its cookies as ours are, no tokens kept, and only who stands in the file comes in."""

    def prepare(self) -> None:
        super().prepare()
        if self.get_query_argument("error", None) is not None:
            raise HTTPError(401, reason=f"{self.login.service} let nobody in")
        if self.get_query_argument("code", None) is not None and not self.get_query_argument("state", ""):
            raise HTTPError(401, reason="No state")  # Panel lets it pass where there is no cookie either: a login by somebody else's code

    @property
    def _redirect_uri(self) -> str:
        return f"{self.gate.origin(self)}/login"

    def get_argument(self, name: str, *args: Any, **kwargs: Any) -> Any:
        value = super().get_argument(name, *args, **kwargs)
        return within(value) if name == "next" and isinstance(value, str) else value

    def set_secure_cookie(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        if name == "user":
            if self.login.users.get(str(value)) is None:
                raise HTTPError(403, reason="Not among the users here")
            self.login.begin(self, str(value))
        elif name.startswith("panel-oauth-"):
            self.set_signed_cookie(name, value, expires_days=1, **self.login.bounds)

    def write_error(self, status_code: int, **_: Any) -> None:
        Page.write_error(self, status_code)
