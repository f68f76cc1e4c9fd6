"""The code of a commit: what a working tree has besides it, a checkout of its own, and the environment of its lock.

The user's own tree is only read. Notable: a patch is in git's plainest form whatever the user's settings are, and holds the files
that git does not know yet, so that the code that ran can be had again from a commit and one file.

Not covered: submodules, files kept by Git LFS, packages built from source.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from speechlab import fetch
from speechlab.errors import InputError
from speechlab.units import Bytes

PATCHED = ("speechlab", "configs", "pyproject.toml", "requirements.lock")  # where files that git does not know yet are code
PATCH_LIMIT: Bytes = 10 * 2**20


def source(package: Path) -> tuple[dict[str, Any], bytes]:
    """The commit that a package's code is, and as a patch what the working tree has besides.

    Args:
        package: Folder of the package.

    Returns:
        The record's row, and the patch, which ``git apply`` takes in a checkout of the commit; empty where there is
        nothing to add. Files that would make it larger than :data:`PATCH_LIMIT` are named under ``left_out``.
    """
    row: dict[str, Any] = {"git_sha": None, "dirty": None, "patch": None, "patch_sha256": None, "left_out": []}
    top = _git(package, "rev-parse", "--show-toplevel")
    # a package installed somewhere below another project's repository is not that project's code
    if top is None or _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return row, b""
    root = Path(top.decode().strip())
    sha, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    row |= {"git_sha": sha.decode().strip() if sha else None, "dirty": None if status is None else bool(status.strip())}
    if not row["dirty"] or sha is None:
        return row, b""
    changed = _git(root, "diff", "--name-only", "--no-renames", "-z", "HEAD") or b""
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *PATCHED) or b""
    names: dict[str, tuple[str, ...]] = {name: ("HEAD", "--", name) for name in _names(changed)}
    names |= {name: ("--no-index", "--", "/dev/null", name) for name in _names(untracked)}
    patch = b""
    for name in sorted(names):  # one by one: the same patch whether a new file was staged or not
        added = _diff(root, *names[name])
        if added is None or len(patch) + len(added) > PATCH_LIMIT:
            row["left_out"].append(name)
        else:
            patch += added
    if patch:
        row |= {"patch": "code.patch", "patch_sha256": hashlib.sha256(patch).hexdigest()}
    return row, patch


def _diff(root: Path, *what: str) -> bytes | None:
    """A patch in git's plainest form, whatever the user's settings are."""
    plain = (
        "--binary",
        "--full-index",
        "--no-renames",
        "--no-color",
        "--no-ext-diff",
        "--no-textconv",
        "--src-prefix=a/",
        "--dst-prefix=b/",
    )
    return _git(root, "diff", *plain, *what)


def _names(listed: bytes) -> list[str]:
    return [name.decode("utf-8", "surrogateescape") for name in listed.split(b"\0") if name]


def _git(folder: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 or (done.returncode == 1 and "--no-index" in arguments) else None  # 1: they differ


@contextmanager
def checkout(repository: Path, sha: str, patch: bytes = b"") -> Iterator[Path]:
    """A commit in a worktree of its own under the cache, for as long as this lasts.

    Args:
        repository: Any folder of the repository; nothing in it is touched but git's own list of worktrees.
        sha: Of the commit.
        patch: What the code had besides, from :func:`source`.

    Yields:
        The worktree's folder.

    Raises:
        InputError: if the repository does not hold the commit, or the patch does not fit it.
    """
    if _git(repository, "cat-file", "-e", f"{sha}^{{commit}}") is None:
        raise InputError(
            "The repository does not hold the commit that the run was made from.",
            got=f"{sha} in {repository}",
            expected="a clone that has it",
            do="git fetch --all, or run this in a clone that has it",
        )
    parent = fetch.cache() / "worktrees"
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{sha[:12]}-", dir=parent))
    try:
        _must(repository, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach", "--force", str(folder), sha)
        if patch:
            done = subprocess.run(["git", "-C", str(folder), "apply", "--whitespace=nowarn", "-"], input=patch, capture_output=True)
            if done.returncode:
                said = done.stderr.decode("utf-8", "replace").strip().splitlines()
                raise InputError("The run's code.patch does not fit its commit.", got=said[-1] if said else sha, expected="a patch of it")
        yield folder
    finally:
        _git(repository, "worktree", "remove", "--force", "--force", str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        _git(repository, "worktree", "prune")


def interpreter(tree: Path, lock: Path) -> tuple[Path, bool]:
    """The Python whose packages are those of a checkout's lock: this one, or one in an environment made for it.

    Args:
        tree: The checkout.
        lock: Of the environment that this process runs in.

    Returns:
        The interpreter, and whether it is another than this one. An environment is made once a lock, and kept in the cache.

    Raises:
        InputError: if the environment cannot be made.
    """
    wanted = tree / "requirements.lock"
    if not wanted.is_file() or (lock.is_file() and wanted.read_bytes() == lock.read_bytes()):
        return Path(sys.executable), False
    name = hashlib.sha256(wanted.read_bytes()).hexdigest()
    folder = fetch.cache() / "environments" / name[:16]
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    with fetch.locked(folder):
        if not (folder / fetch.MARKER).exists():
            shutil.rmtree(folder, ignore_errors=True)
            sync = ["pip", "sync", "--quiet", "--require-hashes", "--compile-bytecode", "--python", str(python), str(wanted)]
            for words in (["venv", "--quiet", "--no-project", "--python", sys.executable, str(folder)], sync):
                try:
                    done = subprocess.run([str(uv), *words], capture_output=True, text=True, cwd=tree)
                except OSError as e:
                    raise InputError("uv is not installed.", got=str(e), expected=str(uv), do="pip install uv") from None
                if done.returncode:
                    raise InputError(
                        "The environment of the run's lock cannot be made.",
                        got=" ".join(done.stderr.split())[-600:],
                        expected="a package index that has what requirements.lock names",
                        do="see that one can be reached, and try again",
                    )
            (folder / fetch.MARKER).write_text(name)
    return python, True


def _must(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise InputError(
            "git cannot make a worktree.", got=" ".join(done.stderr.split())[-300:], expected="a repository that can be written"
        )
