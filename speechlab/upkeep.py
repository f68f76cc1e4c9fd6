"""What runs take on the disk, and what of it may go: old checkpoints by policy, whole runs by name.

Notable: what deletes holds the run's lock, so that no driver starts meanwhile; touches only what lies in the run's own directory, never
through a link and never outside the reports folder; and leaves what other runs beside it refer to.

Not covered: runs elsewhere that refer to this one, MLflow's record of it, its copy at a URI.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from speechlab import checkpoints, registry, runs, versions
from speechlab import config as configs
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.tracking import flatten, uri_for
from speechlab.units import Bytes

KINDS = ("checkpoints", "evaluations", "samples", "rest")
UNREADABLE = "a config that names the run and cannot be read"
AGED = ["checkpoint", "step", "wer", "bytes", "stays"]


def disk(path: Path) -> dict[str, Bytes]:
    """What a run takes, by :data:`KINDS`; what links lead to does not count."""
    found = dict.fromkeys(KINDS, 0)
    for folder, _, names in os.walk(path):
        first = next(iter(Path(folder).relative_to(path).parts), "")
        found[first if first in KINDS else "rest"] += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    return found


def size(amount: Bytes) -> str:
    """Bytes as people read them: ``812 B``, ``36 kB``, ``452 MB``, ``1.36 GB``."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= least:
            return f"{amount / least:.3g} {unit}" if amount < 999.5 * least else f"{amount / least:,.0f} {unit}"
    return f"{amount} B"


def named(name: str, root: str | Path | None = None) -> Run:
    """The run of that name, whose directory must lie in the reports folder itself.

    Args:
        name: As for :func:`speechlab.runs.find`.
        root: The reports folder; none is ``reports``.

    Raises:
        InputError: if there is none, it lies elsewhere, or the name is that of a link.
    """
    folder = _root(root)
    if versions.is_name(name):
        do = "speechlab models tells which run made it; its weights are the registry's and stay"
        raise InputError("A run is deleted by its own name.", got=name, expected="a run's id", do=do)
    run = runs.find(name, folder)
    if any(os.path.islink(os.path.abspath(place)) for place in (folder / name, name)):
        raise InputError("Nothing is deleted through a link.", got=name, expected=f"the run itself: {run.path}")
    _own(run, root)
    return run


def _own(run: Run, root: str | Path | None) -> None:
    if run.path.parent != _root(root):
        expected, do = f"a run in {_root(root)}", "delete it by hand"
        raise InputError("Only what lies in the reports folder is deleted.", got=str(run.path), expected=expected, do=do)
    if (run.path / "driver.lock").is_symlink():  # to take the lock would empty the file that it leads to
        raise InputError(f"The lock of run {run.id} is a link.", got=str(run.path / "driver.lock"), do="look at it, and remove the link")


def _root(root: str | Path | None) -> Path:
    return Path(root if root is not None else configs.reports()).resolve()


def referring(run: Run, place: Path | None = None) -> dict[str, str]:
    """Runs and sweeps beside a run whose config names something in it, such as a checkpoint as ``model.weights``.

    Args:
        run: The run.
        place: A folder of it, to look for what names that alone.

    Returns:
        Their ids, each with what it names. A config that cannot be read counts if the run's id stands in it.
    """
    return _leading(_named(run), place or run.path)


def _named(run: Run) -> dict[str, list[str]]:
    """The texts in the configs of the runs and sweeps beside a run, by their ids."""
    beside, found = run.path.parent, {}
    for path in sorted(p for name in ("*/config.yaml", "*/base.yaml", "*/*/config.yaml") for p in beside.glob(name)):
        if path.resolve().is_relative_to(run.path):
            continue
        try:
            values = [value for value in flatten(configs.load(path)).values() if isinstance(value, str)]
        except InputError:
            values = [UNREADABLE] if run.id.encode() in path.read_bytes() else []
        found[path.parent.relative_to(beside).as_posix()] = values
    return found


def _leading(named: dict[str, list[str]], place: Path) -> dict[str, str]:
    """Which of them name something in a folder, and what; a config that cannot be read counts for every folder of the run."""
    found = {}
    for name, values in named.items():
        if value := next((v for v in values if v is UNREADABLE or _leads(v, place)), None):
            found[name] = str(place) if value is UNREADABLE else value
    return found


def _leads(value: str, place: Path) -> bool:
    """Whether a text is a path into a folder, from here or from the project."""
    path = os.path.expanduser(value)
    return "\0" not in path and any(Path(os.path.realpath(base / path)).is_relative_to(place) for base in (Path.cwd(), configs.home()))


def registered(run: Run) -> list[str]:
    """The registered models that lead back to a run, as ``models:/name/version``.

    Raises:
        InputError: if there is a registry that cannot be asked.
    """
    try:
        uri = uri_for(run)
    except InputError:  # its config cannot be read
        uri = f"sqlite:///{run.path.parent / 'mlflow.db'}"
    return [f"models:/{v.name}/{v.version}" for v in registry.versions(uri=uri) if v.run == run.id]


def aged(run: Run, keep: int = 1) -> pd.DataFrame:
    """A run's checkpoints, and which of them would go by policy; nothing is touched.

    The newest ``keep`` stay, the newest that is intact, the best, the mean of the last and those that it is still to be made of, and what
    other runs refer to.

    Returns:
        checkpoint, step, wer (a fraction), bytes, stays (why; empty where it would go); oldest first.

    Raises:
        InputError: if ``keep`` is less than 1.
    """
    if keep < 1:
        raise InputError("The newest checkpoint always stays.", got=keep, expected="at least 1")
    folder = run.path / "checkpoints"
    found = checkpoints.existing(folder)
    due = 0 if checkpoints.averaged(folder) else run.config.training.average or 0
    whole, best = checkpoints.newest(folder)[0], checkpoints.best(found)
    rows, beside = [], _named(run)
    for n, c in enumerate(reversed(found), 1):
        elsewhere = c.path.resolve() != c.path  # and so not this run's
        users = {} if elsewhere else _leading(beside, c.path)
        reasons = {
            "a link": elsewhere,
            "newest": n <= keep,
            "newest that is whole": whole is not None and c.path == whole.path,
            "best": best is not None and c.path == best.path,
            "the mean of the last is to be made": n <= due,
            f"used by {', '.join(users)}": bool(users),
        }
        stays = next((reason for reason, holds in reasons.items() if holds), "")
        rows.append((c.path.name, c.step, c.wer, sum(disk(c.path).values()), stays))
    return pd.DataFrame(rows[::-1], columns=AGED).astype({"wer": float})


def prune(run: Run, keep: int = 1, root: str | Path | None = None) -> Bytes:
    """Delete the checkpoints that may go: see :func:`aged`.

    Returns:
        Bytes freed.

    Raises:
        InputError: if the run is being trained or lies outside the reports folder, or as for :func:`aged`.
    """
    _own(run, root)
    with run.lock():
        rows = aged(run, keep)
        gone = rows[rows.stays == ""]
        for name in gone.checkpoint:
            shutil.rmtree(run.path / "checkpoints" / name)
    return int(gone.bytes.sum())


def delete(run: Run, root: str | Path | None = None) -> Bytes:
    """Delete a run's directory; links in it go, what they lead to stays.

    Returns:
        Bytes freed.

    Raises:
        InputError: if the run is being trained, lies outside the reports folder, another run refers to something in it, or a registered
            model leads back to it.
    """
    _own(run, root)
    with run.lock():
        if models := registered(run):
            raise InputError(
                f"Run {run.id} stays: registered models lead back to it.",
                got=", ".join(models),
                expected="a run that made none of them",
                do=f"free space with: speechlab prune {run.id}",
            )
        if users := referring(run):
            name, value = next(iter(users.items()))
            raise InputError(
                f"Run {run.id} stays: other runs refer to it.",
                got=f"{', '.join(users)}; model.weights or another value of {name} is {value}",
                expected="a run that no other needs",
                do=f"delete those first, or free space with: speechlab prune {run.id}",
            )
        freed = sum(disk(run.path).values())
        # config.yaml and the lock last: what is left of a deletion that was interrupted is a run, and can be deleted
        for path in sorted(run.path.iterdir(), key=lambda p: (p.name == "driver.lock", p.name == "config.yaml")):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        run.path.rmdir()
    return freed
