"""The door: whom it lets in. What it does to live servers is in ``tests/test_app.py``'s table of attacks."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest
from browser import free_port
from tornado.web import HTTPError

from speechlab import door, login, users
from speechlab.door import Terms
from speechlab.errors import InputError
from speechlab.users import Users


@pytest.mark.parametrize(("address", "host"), [("127.0.0.1", "127.0.0.1:{}"), ("::1", "[::1]:{}"), ("localhost", "localhost:{}")])
def test_a_page_is_served_to_this_machine_under_its_own_name(address, host):
    port = free_port()
    found = door.guarded(address, port)
    assert found["websocket_origin"] == [host.format(port)]
    visit = found["auth_provider"].get_user_async

    def came(named: str) -> str:
        return asyncio.run(visit(SimpleNamespace(request=SimpleNamespace(host=named, headers={}, method="GET"))))

    assert came(host.format(port)) == "visitor"
    for other in (f"evil.example:{port}", host.format(port + 1), host.format("")[:-1], "", f"{host.format(port)}.evil.example"):
        with pytest.raises(HTTPError):
            came(other)


NO_NAME = ("0.0.0.0", "::", "")


@pytest.fixture
def bound(monkeypatch):
    """The addresses that somebody tried to listen on; nothing listens."""
    tried: list[tuple[str, int]] = []
    monkeypatch.setattr(door.ports, "need_free", lambda address, port, do: tried.append((address, port)))
    return tried


@pytest.fixture
def people(tmp_path, monkeypatch):
    """A file of users, where the configuration is; and certificates."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(users, "COST", (10, 8, 1))
    yield Users()
    login._open.clear()


@pytest.mark.parametrize("address", [*NO_NAME, "192.168.1.5", "example.org", "127.0.0.1.evil.example"])
def test_no_other_machine_is_served_without_login_and_tls(address, bound, people):
    with pytest.raises(InputError, match=r"speechlab user NAME[\s\S]*--tls-cert[\s\S]*forward the port") as told:
        door.guarded(address, 5006)
    assert ("--origin" in str(told.value)) == (address in NO_NAME)
    people.put("ann", "operator", "correct horse battery")
    with pytest.raises(InputError, match="--tls-cert") as told:
        door.guarded(address, 5006)
    assert "speechlab user" not in str(told.value)
    with pytest.raises(InputError, match="--tls-cert"):
        door.guarded("127.0.0.1", 5006, Terms(origins=("https://lab.example.org",)))
    with pytest.raises(InputError, match="--origin"):
        door.guarded(address, 5006, Terms(proxy=True))
    with pytest.raises(InputError, match="--origin"):
        door.guarded(address, 5006, Terms(proxy=True, origins=("http://lab.example.org",)))
    assert bound == []
    found = door.guarded(address, 5006, Terms(proxy=True, origins=("https://lab.example.org",)))  # control
    assert found["websocket_origin"] == ["lab.example.org"] and found["use_xheaders"] and found["sign_sessions"]
    assert found["auth_provider"].login_url == "/login" and bound == [(address, 5006)]
    assert login._open["__Host-speechlab-5006"].bounds["secure"]


def test_a_file_of_users_asks_for_a_login_on_this_machine_too(people, bound):
    assert door.guarded("127.0.0.1", 5006)["auth_provider"].login_url is None
    with pytest.raises(InputError, match="no file of users"):
        door.guarded("127.0.0.1", 5006, Terms(users=people.path))
    people.put("ann", "operator", "correct horse battery")
    assert door.guarded("127.0.0.1", 5006, Terms(users=people.path))["auth_provider"].login_url == "/login"
    people.remove("ann")
    with pytest.raises(InputError, match="Nobody could log in"):
        door.guarded("127.0.0.1", 5006, Terms(users=people.path))


def test_oauth_wants_a_known_service_and_its_keys_from_the_environment(people, bound, monkeypatch):
    people.put("ann@example.org", "operator", None)
    for key in login.KEYS:
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(InputError, match="PANEL_OAUTH_KEY"):
        door.guarded("127.0.0.1", 5006, Terms(oauth="github"))
    for name in ("pam", "password", "githup"):
        with pytest.raises(InputError, match="no such OAuth service"):
            door.guarded("127.0.0.1", 5006, Terms(oauth=name))


@pytest.mark.parametrize(
    ("text", "origin"),
    [("https://Lab.example.org", "https://lab.example.org"), ("https://lab.example.org:443/", "https://lab.example.org"),
     ("https://lab.example.org:8443", "https://lab.example.org:8443"), ("http://[::1]:80", "http://[::1]")],
)  # fmt: skip
def test_an_origin_is_read_as_browsers_write_it(text, origin):
    assert door._origin(text) == origin


@pytest.mark.parametrize(
    "text", ["", "*", "https://*", "https://*.example.org", "lab.example.org", "ftp://x", "https://a/b", "https://u@a", "https://a b"]
)
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(InputError, match="cannot be read"):
        door._origin(text)


def test_a_certificate_is_tried_first(people, bound, tmp_path):
    people.put("ann", "operator", "correct horse battery")
    (tmp_path / "cert").write_text("none")
    for terms in (
        Terms(cert=tmp_path / "cert"),
        Terms(cert=tmp_path / "cert", key=tmp_path / "cert"),
        Terms(cert=tmp_path / "no", key=tmp_path / "no"),
    ):
        with pytest.raises(InputError, match="certificate cannot be used"):
            door.guarded("192.168.1.5", 5006, terms)
    assert bound == []


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
