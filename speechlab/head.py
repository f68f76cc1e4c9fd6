"""A Ray head: the one at an address, or one of this process on this machine.

Whoever starts one ends it with ``ray.shutdown``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from speechlab import detached
from speechlab.errors import InputError

STARTS = 3  # attempts to start Ray here, where it was too slow
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_worker_niceness": "0",  # Ray would put training behind whatever else runs here
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a lost worker is noticed in half a second, not two
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one actor and seconds of start-up less
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # how long a restart waits for what a lost worker held
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour to come; the old one warns at each start
}


def start(address: str | None, *, cores: int, quiet: bool = True) -> None:
    """Connect to a cluster, or start one on this machine; ``ray.shutdown`` ends it.

    Args:
        address: Of a head; None starts one here.
        cores: What it may hand out here.
        quiet: Keep Ray's own log out of the terminal.

    Raises:
        InputError: if it cannot be reached or started.
    """
    environment()
    import ray

    if address is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # what a head of this version expects of others
    local: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": 200 * 1024**2} if address is None else {}
    try:
        _knock(address)
        # "local": a cluster that happens to run on this machine is not ours to join
        patiently(lambda: ray.init(address=address or "local", log_to_driver=not quiet, logging_level="ERROR", **local), ray.shutdown)
    except Exception as e:
        raise InputError(
            "Ray could not start." if address is None else "The Ray cluster cannot be reached.",
            got=f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}",
            expected="room for its processes and a writable /tmp/ray" if address is None else f"a Ray head at {address}",
            do="see speechlab doctor; cluster.workers=0 trains in this process without Ray",
        ) from None
    if quiet:
        # what Ray prints when a machine is lost, forty lines of it, has no switch; the run's events say what it means
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    with suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)  # Ray writes it readable to all


def patiently(begin: Callable[[], object], undo: Callable[[], object]) -> None:
    """Start Ray, and again after undoing it: its processes get 30 s, and one of them 15 (ray#65983), which no setting changes."""
    here = psutil.Process()
    for attempt in range(STARTS):
        before = set(here.children())
        try:
            begin()
            return
        except Exception as e:
            undo()
            _end(set(here.children()) - before)
            if "timed out during startup" not in str(e) or attempt == STARTS - 1:
                raise


def _end(begun: set[psutil.Process]) -> None:
    """What a failed start leaves of Ray's processes: Ray ends them with this one, and until then they slow the next start down."""
    import ray

    left = []
    for process in begun:
        with suppress(psutil.Error):
            if any(str(Path(ray.__file__).parent) in word for word in process.cmdline()):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=10)


def environment() -> None:
    """What Ray reads when it is imported, and hands on to its controller and workers."""
    for name, value in (RAY | detached.MALLOC).items():
        os.environ.setdefault(name, value)


def _knock(address: str | None) -> None:
    """Fail in seconds where nobody answers: Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()
