"""Patches, worktrees and environments on small repositories made for it; the user's own tree is never written."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from speechlab import commit
from speechlab.errors import InputError


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace").strip()


def state(root: Path) -> tuple[str, dict[Path, bytes]]:
    """All of a tree that a user sees: files, and what git says of them."""
    files = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".git" not in p.parts}
    return git(root, "status", "--porcelain"), files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def repository(tmp_path) -> Path:
    """A small repository with a package in it."""
    root = tmp_path / "repository"
    (root / "speechlab").mkdir(parents=True)
    (root / "speechlab" / "__init__.py").write_text("one = 1\n")
    (root / "speechlab" / "table.bin").write_bytes(bytes(range(256)))
    git(root, "init", "-q")
    git(root, "config", "user.email", "a@example.org")
    git(root, "config", "user.name", "a")
    git(root, "config", "diff.noprefix", "true")  # a user's settings change no patch
    git(root, "config", "color.ui", "always")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def test_a_patch_brings_the_code_back(repository, cache):
    package = repository / "speechlab"
    assert commit.source(package)[0]["dirty"] is False and commit.source(package)[1] == b""
    (package / "__init__.py").write_text("one = 1\ntwo = 2 \r\n")
    (package / "table.bin").write_bytes(bytes(range(255, -1, -1)))
    (package / "new module.py").write_text("three = 3")  # without a newline at its end
    (package / "empty.py").write_text("")
    (package / "new.bin").write_bytes(os.urandom(3000))
    (repository / "diary.txt").write_text("no code")
    git(repository, "add", "speechlab/new.bin")  # staged counts as well
    before = state(repository)
    row, patch = commit.source(package)
    assert row["patch_sha256"] == hashlib.sha256(patch).hexdigest() and row["left_out"] == []
    with commit.checkout(repository, row["git_sha"], patch) as tree:
        assert tree.is_relative_to(cache)
        ours, theirs = ({p.name: p.read_bytes() for p in (root / "speechlab").iterdir()} for root in (repository, tree))
        assert ours == theirs and not (tree / "diary.txt").exists()
        assert commit.source(tree / "speechlab") == (row, patch)  # what runs there records the same code
    assert state(repository) == before
    assert not tree.exists() and git(repository, "worktree", "list").count("\n") == 0


def test_a_patch_has_a_limit_and_says_what_it_left_out(repository, monkeypatch):
    package = repository / "speechlab"
    monkeypatch.setattr(commit, "PATCH_LIMIT", 2000)
    (package / "large.bin").write_bytes(os.urandom(5000))
    (package / "small.py").write_text("four = 4\n")
    row, patch = commit.source(package)
    assert row["left_out"] == ["speechlab/large.bin"] and b"four = 4" in patch and row["patch"] == "code.patch"
    (package / "__init__.py").write_text("x = 1\n" * 1000)
    (package / "small.py").unlink()
    row, patch = commit.source(package)
    assert row["left_out"] == ["speechlab/__init__.py", "speechlab/large.bin"]
    assert patch == b"" and row["patch"] is None and row["dirty"]


def test_outside_a_repository_the_commit_is_null(tmp_path, repository):
    nothing = {"git_sha": None, "dirty": None, "patch": None, "patch_sha256": None, "left_out": []}
    assert commit.source(tmp_path) == (nothing, b"")
    # installed below somebody's repository: its commit is not the package's
    (repository / ".gitignore").write_text("site-packages\n")
    shutil.copytree(repository / "speechlab", repository / "site-packages" / "speechlab")
    assert commit.source(repository / "site-packages" / "speechlab") == (nothing, b"")


def test_a_checkout_that_cannot_be_had_says_why_and_leaves_nothing(repository, cache):
    sha = git(repository, "rev-parse", "HEAD")
    with pytest.raises(InputError, match="does not hold the commit") as missing, commit.checkout(repository, "0" * 40):
        pass
    assert "git fetch" in str(missing.value)
    wrong = b"diff --git a/speechlab/__init__.py b/speechlab/__init__.py\n--- a/speechlab/__init__.py\n+++ b/speechlab/__init__.py\n"
    wrong += b"@@ -1 +1 @@\n-another = 1\n+one = 2\n"
    with pytest.raises(InputError, match="does not fit its commit"), commit.checkout(repository, sha, wrong):
        pass
    with pytest.raises(ZeroDivisionError), commit.checkout(repository, sha):
        raise ZeroDivisionError
    assert list((cache / "worktrees").iterdir()) == [] and git(repository, "worktree", "list").count("\n") == 0


def test_hooks_of_the_repository_do_not_run(repository, tmp_path):
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    with commit.checkout(repository, git(repository, "rev-parse", "HEAD")):
        assert not (tmp_path / "ran").exists()
    git(repository, "checkout", "-q", "-b", "other")
    assert (tmp_path / "ran").exists(), "a hook that would have run"


def wheel(folder: Path) -> str:
    """A package of one module; its line in a lock."""
    files = {
        "tiny_lock.py": b"value = 7\n",
        "tiny_lock-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-lock\nVersion: 1.0\n",
        "tiny_lock-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(data)}")
    path = folder / "tiny_lock-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        for name, data in files.items():
            z.writestr(name, data)
        z.writestr("tiny_lock-1.0.dist-info/RECORD", "\n".join([*rows, "tiny_lock-1.0.dist-info/RECORD,,"]))
    return f"tiny-lock==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_an_environment_is_made_from_another_lock_once(tmp_path, cache, monkeypatch):
    tree, here = tmp_path / "tree", tmp_path / "here.lock"
    tree.mkdir()
    here.write_text("this\n")
    assert commit.interpreter(tree, here) == (Path(sys.executable), False)  # nothing to make one from
    (tree / "requirements.lock").write_text("this\n")
    assert commit.interpreter(tree, here) == (Path(sys.executable), False)

    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    line = wheel(tmp_path)
    (tree / "requirements.lock").write_text(line.replace("sha256:", "sha256:00")[: len(line) - 2] + "\n")
    with pytest.raises(InputError, match="lock cannot be made"):
        commit.interpreter(tree, here)

    (tree / "requirements.lock").write_text(line)
    python, other = commit.interpreter(tree, here)
    assert other and python.is_relative_to(cache / "environments")
    code = "import tiny_lock, importlib.metadata as m; print(tiny_lock.value, [d.name for d in m.distributions()])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "7 ['tiny-lock']"
    made = python.parent.stat().st_mtime_ns
    assert commit.interpreter(tree, here) == (python, True) and python.parent.stat().st_mtime_ns == made
