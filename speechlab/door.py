"""Who comes in to a served page, and what its answers allow: this machine alone, and nothing from elsewhere.

Notable: a websocket's origin is compared with the page's own, and so is the host that a request names. The second is needed too:
Tornado 6.6 asks for no leave where origin and host are the same, so a name that an attacker has bound to 127.0.0.1 (DNS rebinding)
would pass Bokeh's list of origins. Every answer carries a policy under which a browser loads nothing from elsewhere and shows the
page inside no other, where a click could be led onto one of its buttons.

Not covered: a login, without which nothing is served to other machines.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

from bokeh.server.auth_provider import NullAuth
from tornado.httputil import HTTPHeaders
from tornado.web import HTTPError, OutputTransform

from speechlab.errors import InputError

OWN = ("127.0.0.1", "::1", "localhost")
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


def guarded(address: str, port: int) -> dict[str, Any]:
    """Arguments of ``pn.serve`` under which a page is served to this machine only.

    Args:
        address: A loopback address.
        port: TCP port.

    Raises:
        InputError: if the port is taken or the address is not this machine's own.
    """
    if address not in OWN:
        raise InputError(
            "There is no login, so pages are served to this machine only.",
            got=address,
            expected="127.0.0.1",
            do=f"forward the port: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE",
        )
    _check_free(address, port)
    host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return {"address": address, "port": port, "websocket_origin": [host], "auth_provider": _Host(host), "transforms": [_Policy]}


def may_change() -> bool:
    """Whether the visitor may launch, stop, tag and delete; on loopback everyone may, who has this machine already."""
    return True


def _check_free(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as e:
            raise InputError(
                "The port cannot be had.", got=f"{address}:{port} ({e})", expected="a free port", do=f"choose another: --port {port + 1}"
            ) from None


class _Host(NullAuth):  # type: ignore[misc]  # bokeh's types are not read
    """Turns away whoever asks for a page or a websocket of another host."""

    def __init__(self, host: str) -> None:
        self._host = host
        super().__init__()

    @property
    def get_user_async(self) -> Callable[[Any], Awaitable[str]]:
        async def visitor(handler: Any) -> str:
            if handler.request.host.lower() != self._host:
                raise HTTPError(403, "another host")
            return "visitor"

        return visitor

    @property
    def get_login_url(self) -> Callable[[Any], str]:
        return lambda _: "/"  # asked for with a user; nobody is sent there


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
