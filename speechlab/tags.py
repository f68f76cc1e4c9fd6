"""Tags of runs: a few short words each, by which people find them again.

Notable: they lie in the run's own directory (``tags.txt``, one a line, written whole or not at all), so they go where the run goes.

Not covered: tags of registered models and of MLflow's runs, which gets these when it is sent the run (:mod:`speechlab.tracking`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from speechlab import runs
from speechlab.errors import InputError
from speechlab.runs import Run

FILE = "tags.txt"
MOST = 12
WORD = re.compile(r"[\w.+-](?:[\w .+-]{0,30}[\w.+-])?")


def read(path: Path) -> tuple[str, ...]:
    """The tags of a run's directory; lines that are none, and a file that is a link, do not count."""
    file = path / FILE
    try:
        lines = [] if file.is_symlink() else file.read_text("utf-8", "replace")[:4096].splitlines()
    except OSError:
        return ()
    return tuple(dict.fromkeys(line for line in lines if WORD.fullmatch(line)))[:MOST]


def parsed(texts: Iterable[str]) -> tuple[str, ...]:
    """Tags from texts with commas between them, each once whatever its case.

    Raises:
        InputError: if one is too long or holds other signs than letters, digits, spaces and ``.+-_``, or there are too many.
    """
    words = [" ".join(word.split()) for text in texts for word in text.split(",")]
    found: dict[str, str] = {}
    for word in filter(None, words):
        found.setdefault(word.casefold(), word)
    if bad := [word for word in found.values() if not WORD.fullmatch(word)]:
        raise InputError("A tag cannot be taken.", got=bad[0][:80], expected="1 to 32 letters, digits, spaces and .+-_")
    if len(found) > MOST:
        raise InputError("A run has a few tags.", got=len(found), expected=f"{MOST} at most")
    return tuple(found.values())


def write(run: Run, tags: tuple[str, ...]) -> None:
    """Give a run these tags in place of those that it has.

    Args:
        run: The run.
        tags: From :func:`parsed`.
    """
    runs.write_atomic(run.path / FILE, "".join(f"{tag}\n" for tag in tags).encode())
