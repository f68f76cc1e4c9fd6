"""Who comes in to a served page, and what its answers allow: this machine alone, or who has logged in; and nothing from elsewhere.

Notable: a websocket's origin is compared with the page's own, and so is the host that a request names. The second is needed too:
Tornado 6.6 asks for no leave where origin and host are the same, so a name that an attacker has bound to 127.0.0.1 (DNS rebinding)
would pass Bokeh's list of origins. Every answer carries a policy under which a browser loads nothing from elsewhere and shows the
page inside no other, where a click could be led onto one of its buttons. To other machines nothing is served without a login
(:mod:`speechlab.login`) and TLS, here or in front.

Not covered: certificates, which are made elsewhere; who may see which run.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bokeh.server.auth_provider import NullAuth
from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError, OutputTransform, RequestHandler

from speechlab import login, ports
from speechlab.errors import InputError
from speechlab.login import Login
from speechlab.units import Bytes
from speechlab.users import Users

OWN = ("127.0.0.1", "::1", "localhost")
EVERY = ("0.0.0.0", "::", "")  # addresses that are all of a machine's, and no name of it  # noqa: S104
LARGEST: Bytes = 64 * 1024  # of a request's body: a login's; uploads come over the websocket
OPERATORS = "Only operators may do this."
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'",  # Bokeh's page begins with a script in it, and compiles templates
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' blob:",  # Panel's components are read from the page's own memory
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


@dataclass(frozen=True)
class Terms:
    """On what terms people come in; as they stand, from this machine without a login.

    Attributes:
        users: A file of users, by which a login is asked for on loopback too; None is the usual file where a login is needed.
        oauth: A service that knows them, in place of passwords: one of :data:`speechlab.login.SERVICES`.
        origins: Addresses that people open, as ``https://lab.example.org``; none is the server's own address and port.
        cert: Certificate for TLS, with those that lead to its authority; PEM.
        key: Its private key; PEM.
        proxy: Whether a server in front ends TLS, and says by ``X-Forwarded-For`` who asks.
    """

    users: Path | None = None
    oauth: str = ""
    origins: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    proxy: bool = False


HERE = Terms()


def guarded(address: str, port: int, terms: Terms = HERE) -> dict[str, Any]:
    """Arguments of ``pn.serve`` under which a page is served to this machine only, or to who logs in.

    Args:
        address: To listen on; without a login and TLS, a loopback address.
        port: TCP port.
        terms: On which people come in.

    Raises:
        InputError: if the port is taken, or others could come in without a login or without TLS, or as for :class:`Login`.
    """
    origins, tls = origins_of(address, port, terms), _tls(terms)
    needed = terms.users is not None or bool(terms.oauth) or _elsewhere(address, terms)
    entrance = Login(Users(terms.users), port, secure=bool(tls) or terms.proxy, service=terms.oauth) if needed else None
    ports.need_free(address, port, f"choose another: --port {port + 1}")
    found: dict[str, Any] = {"address": address, "port": port, "websocket_origin": [urlsplit(origin).netloc for origin in origins]}
    found |= {"auth_provider": _Host(origins, entrance), "transforms": [_Policy], "http_server_kwargs": {"max_body_size": LARGEST}}
    if entrance:  # a session is known by its user, and the cookie is nothing that a page's script should hold
        found |= {"cookie_secret": entrance.secret, "sign_sessions": True, "secret_key": entrance.session_key}
        found |= {"include_headers": [login.HEADER, "User-Agent"], "include_cookies": []}
    return found | tls | ({"use_xheaders": True} if terms.proxy else {})


def may_change() -> bool:
    """Whether the visitor may launch, stop, tag and delete: operators; and without a login everyone may, who has this machine already."""
    found = login.visitor()
    return found is not None and found.role == "operator" if login.required() else True


def who() -> str:
    """The name of whoever looks at the page whose code this is, under which what they launch is queued."""
    found = login.visitor()
    return found.name if found else "visitor"


def origins_of(address: str, port: int, terms: Terms = HERE) -> tuple[str, ...]:
    """Under which origins a server is opened: those named, or that of its address and port.

    Raises:
        InputError: if one cannot be read, or other machines would be served without a login, TLS or a name; all that is missing is told.
    """
    missing = {
        "a login: speechlab user NAME --role operator": not Users(terms.users).path.exists(),
        "TLS: --tls-cert FILE --tls-key FILE, or --behind-proxy where a server in front ends it": not (terms.cert or terms.proxy),
        "the name that people open: --origin https://lab.example.org": any(_origin(o).startswith("http:") for o in terms.origins)
        or (not terms.origins and (address in EVERY or terms.proxy)),
    }
    if _elsewhere(address, terms) and any(missing.values()):
        raise InputError(
            "Other machines are served only with a login, over TLS and by name.",
            got=address or "every address",
            expected="; ".join(what for what, lacks in missing.items() if lacks),
            do=f"or forward the port: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE",
        )
    own = f"http{'s' if terms.cert else ''}://{f'[{address}]' if ':' in address else address}:{port}"
    return tuple(map(_origin, terms.origins)) or (own,)


def _elsewhere(address: str, terms: Terms) -> bool:
    """Whether other machines are served, by this server or by one in front of it."""
    return terms.proxy or any(host not in OWN for host in (address, *(urlsplit(_origin(o)).hostname for o in terms.origins)))


def _origin(text: str) -> str:
    """An origin as browsers write it."""
    if not re.fullmatch(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?/?", text.lower()):
        raise InputError("An origin cannot be read.", got=text[:200], expected="https://lab.example.org, or with a port")
    scheme, host = text.lower().rstrip("/").split("://")
    return f"{scheme}://{host.removesuffix(':443' if scheme == 'https' else ':80')}"


def _tls(terms: Terms) -> dict[str, str]:
    """What the server is told of a certificate, which is tried first."""
    if terms.cert is None and terms.key is None:
        return {}
    try:
        if terms.cert is None or terms.key is None:
            raise OSError("one without the other")
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(terms.cert, terms.key, password="")
    except OSError as e:  # ssl's errors are of this kind too
        raise InputError("The certificate cannot be used.", got=str(e), expected="--tls-cert FILE --tls-key FILE, both PEM") from None
    return {"ssl_certfile": str(terms.cert), "ssl_keyfile": str(terms.key)}


class _Host(NullAuth):  # type: ignore[misc]  # bokeh's types are not read
    """Turns away whoever asks for a page or a websocket of another host or from another origin, and who has to log in first."""

    def __init__(self, origins: tuple[str, ...], entrance: Login | None = None) -> None:
        self._origins, self._login = {urlsplit(origin).netloc: origin for origin in origins}, entrance
        self._pages = login.pages(entrance, self) if entrance else None
        super().__init__()

    def admit(self, handler: RequestHandler) -> None:
        """Turn away whoever names another host, and whoever sends something from another origin.

        Raises:
            HTTPError: with status 403.
        """
        self.origin(handler)
        origin, posted = handler.request.headers.get("Origin"), handler.request.method == "POST"
        if (origin is not None or posted) and origin not in self._origins.values():
            raise HTTPError(403, "another origin")

    def origin(self, handler: RequestHandler) -> str:
        """Which of the server's origins is asked.

        Raises:
            HTTPError: with status 403, if none is.
        """
        found = self._origins.get(handler.request.host.lower())
        if found is None:
            raise HTTPError(403, "another host")
        return found

    @property
    def get_user_async(self) -> Callable[[Any], Awaitable[str | None]]:
        async def visitor(handler: Any) -> str | None:
            self.admit(handler)
            return self._login.visitor(handler) if self._login else "visitor"

        return visitor

    @property
    def get_login_url(self) -> Callable[[Any], str] | None:
        return None if self._login else lambda _: "/"  # asked for with a user; nobody is sent there

    @property
    def login_url(self) -> str | None:
        return "/login" if self._login else None

    @property
    def login_handler(self) -> type[RequestHandler] | None:
        return self._pages[0] if self._pages else None

    @property
    def logout_url(self) -> str | None:
        return "/logout" if self._login else None

    @property
    def logout_handler(self) -> type[RequestHandler] | None:
        return self._pages[1] if self._pages else None


class _Policy(OutputTransform):
    """Puts :data:`POLICY` on every answer."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["Content-Security-Policy"] = POLICY
        headers["X-Frame-Options"] = "DENY"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "same-origin"
        return status_code, headers, chunk
