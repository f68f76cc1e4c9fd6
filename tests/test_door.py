"""The door: whom it lets in. What it does to live servers is in ``tests/test_app.py``'s table of attacks."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest
from browser import free_port
from tornado.web import HTTPError

from speechlab import door
from speechlab.errors import InputError


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1", "127.0.0.1:{}"), ("::1", "[::1]:{}"), ("localhost", "localhost:{}")])
def test_a_page_is_served_to_this_machine_under_its_own_name(address, host):
    port = free_port()
    found = door.guarded(address, port)
    assert found["websocket_origin"] == [host.format(port)]
    visit = found["auth_provider"].get_user_async

    def came(named: str) -> str:
        return asyncio.run(visit(SimpleNamespace(request=SimpleNamespace(host=named))))

    assert came(host.format(port)) == "visitor"
    for other in (f"evil.example:{port}", host.format(port + 1), host.format("")[:-1], "", f"{host.format(port)}.evil.example"):
        with pytest.raises(HTTPError):
            came(other)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.1.evil.example"])
def test_no_other_machine_is_served(address):
    with pytest.raises(InputError, match=r"no login[\s\S]*forward the port"):
        door.guarded(address, 5006)


def test_a_taken_port_and_one_out_of_range_are_input_errors():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"free port[\s\S]*--port"):
            door.guarded("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="free port"):
        door.guarded("127.0.0.1", 70_000)


def test_the_policy_names_no_other_host():
    assert "://" not in door.POLICY and "*" not in door.POLICY
    assert "frame-ancestors 'none'" in door.POLICY
