"""A speechlab command in a process of its own, so that a notebook's kernel stays free."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# glibc keeps what large tensors freed: with blocks from 16 MB mapped on their own a worker stays at 3.2 GB instead of 3.4
# after twelve steps and takes a fifth less time. From 1 MB on it is 2.6 GB, at one and a half times the time: page
# faults (reports/LOG.md). Read when a process starts, so set for those below.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "16000000", "MALLOC_TRIM_THRESHOLD_": "16000000"}


def start(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start ``speechlab`` in a session of its own, which outlives this one; what it says goes into the folder's driver.log.

    Args:
        folder: That the log is in.
        arguments: Of the command.
        environment: Variables that differ from this process'.
    """
    log = open(folder / "driver.log", "ab")  # noqa: SIM115 - the child's
    return subprocess.Popen(
        [sys.executable, "-m", "speechlab", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**MALLOC, **os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )


def said(folder: Path) -> str:
    """The end of what it said."""
    log = folder / "driver.log"
    return log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""
