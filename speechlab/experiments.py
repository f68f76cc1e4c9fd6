"""Runs side by side: what each is, what it cost, what it can do, and what it takes on the disk.

Notable: everything is a function from a folder of runs, or from their table, to a table. A run that cannot be read is a row that says
why, and hides no other.

Not covered: runs in a folder within the folder, such as a sweep's trials, unless that folder is asked for; evaluations that are no run's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speechlab import checkpoints, conditions, evaluation, results, runs, tags
from speechlab import config as configs
from speechlab.errors import InputError, did_you_mean
from speechlab.evaluation import Evaluation
from speechlab.runs import Run
from speechlab.tracking import flatten
from speechlab.units import clock
from speechlab.upkeep import KINDS, disk, size

NUMBERS = ("dev", "wer", "low", "high", "rtfx", "seconds")
TEXTS = ("name", "family", "weights", "signature", "heard", "note", "tags")
FORMATS = {"dev WER": "{:.2f}", "RTFx": "{:.1f}", "clips": "{:,}"} | dict.fromkeys(
    ("started", "WER, 95 %", "training", "disk", *KINDS, "total"), "{}"
)
SHORT = ("state", "family", "weights")  # columns that a filter may name beside the config's keys


def table(root: str | Path | None = None) -> pd.DataFrame:
    """All runs of a folder, the newest last.

    Args:
        root: The folder; none is ``reports``.

    Returns:
        id (the directory's name), path, label (the name, or the id where several have that name), name, state (as
        :attr:`speechlab.runs.Run.state`, or ``broken``), family, weights (as in the config, or ``from scratch``), dev (lowest validation
        WER), wer, low and high (of the trained system on clean test clips in its usual context, 95 % over utterances; fractions),
        rtfx, heard (which clips and normaliser the WER is of), seconds and clips (of all training steps, those that a resume repeated
        included), disk (bytes), started (UTC), signature, note (why it is broken, or what to know), tags (with commas), leaves (the config,
        flat).
    """
    folder = Path(root if root is not None else configs.reports())
    paths = {path.parent for name in ("config.yaml", "events.jsonl") for path in folder.glob(f"*/{name}")}
    rows = pd.DataFrame([_row(path) for path in sorted(paths)], columns=list(_blank(folder))).astype(dict.fromkeys(NUMBERS, float))
    rows["started"] = pd.to_datetime(rows.started.astype(float), unit="s", utc=True)
    shared = rows.name.duplicated(keep=False) | (rows.name == "")
    rows["label"] = rows.id.where(shared, rows.name)
    return rows.sort_values(["started", "id"], na_position="first", ignore_index=True)


def _blank(path: Path) -> dict[str, Any]:
    unknown: dict[str, Any] = {**dict.fromkeys(TEXTS, ""), **dict.fromkeys(NUMBERS, math.nan)}
    return {
        "id": path.name,
        "path": path,
        "label": "",
        "state": "broken",
        **unknown,
        "clips": 0,
        "disk": 0,
        "started": math.nan,
        "leaves": {},
    }


def _row(path: Path) -> dict[str, Any]:
    row = _blank(path)
    try:
        row["disk"] = sum(disk(path).values())
        run = Run(path)
        row["tags"] = ", ".join(tags.read(path))
        for part in (_settings, _trained, tested):
            row |= part(run)
        row["state"] = run.state
        if path.is_symlink():
            row["note"] = f"a link to {run.path}"
    except Exception as e:  # whatever a damaged file makes its reader raise; what was read before it stands
        row["note"] = " ".join(f"{'' if isinstance(e, InputError) else type(e).__name__ + ': '}{e}".split())[:300]
    return row


def _settings(run: Run) -> dict[str, Any]:
    config = run.config
    about = {"family": config.model.family, "weights": config.model.weights or "from scratch", "signature": config.signature}
    return {"name": config.name, **about, "leaves": flatten(config)}


def _trained(run: Run) -> dict[str, Any]:
    events = run.events()
    steps = [e for e in events if e["kind"] == "step"]
    ends = [e["best"]["wer"] for e in events if e["kind"] == "end" and e.get("best")]  # the mean of checkpoints has no validation event
    seen = runs.per_step(events, "validation")
    wers = pd.Series([*(seen.wer if len(seen) else ()), *ends] if run.config.transcribes else [], dtype=float)
    return {
        "started": next((float(e["time"]) for e in events if e["kind"] == "start"), math.nan),
        "dev": float(wers.min()),
        "seconds": float(sum(e["step_seconds"] for e in steps)) if steps else math.nan,
        "clips": int(sum(e["clips"] for e in steps)),
    }


def tested(run: Run) -> dict[str, Any]:
    """What the trained system of a run was measured to do, as columns of :func:`table`: wer, low, high, rtfx, heard and note.

    Returns:
        Nothing, or a note alone, where it was not heard on clean test clips.
    """
    found = _evaluations(run, "*--clean--*")
    clean = next((e for e in found if conditions.condition(e.condition).kind == "clean"), None)
    if clean is None:
        old = any((run.path / "evaluations").glob("*--clean--*.json")) and not found
        return {"note": f"evaluated by an older version of the lab: speechlab evaluate {run.id}"} if old else {}
    (row,) = results.summary([clean], run.config.evaluation, run.config.seed).to_dict("records")
    best = checkpoints.best(checkpoints.candidates(run.path / "checkpoints"))
    late = best is not None and best.digest != clean.weights_sha256
    return {
        **{name: row[name] for name in ("wer", "low", "high", "rtfx")},
        "heard": f"{clean.heard_sha256[:12]}, {clean.normaliser}",
        "note": f"evaluated before its best checkpoint was made: speechlab evaluate {run.id}" if late else "",
    }


def _evaluations(run: Run, wanted: str = "*--*--*") -> list[Evaluation]:
    """Those of the trained system, clean speech first, each condition's usual context before others."""
    known = [e for e in evaluation.load(run.path / "evaluations", wanted) if e.system != "pretrained"]
    places = {name: place for place, name in enumerate(conditions.STANDARD)}
    return sorted(results.usual_first(known), key=lambda e: places.get(e.condition, len(places)))


def select(rows: pd.DataFrame, patterns: Sequence[str] = (), where: Sequence[str] = ()) -> pd.DataFrame:
    """The runs that match any of the patterns and all of the conditions.

    Args:
        rows: From :func:`table`.
        patterns: Shell patterns of ids or names, or ``latest``; none are all.
        where: ``key=value`` texts: tag, state, family, weights, or a key of the config such as ``optim.lr``; numbers as numbers.

    Raises:
        InputError: if a pattern matches no run, or no run's config has a key.
    """
    keep = pd.Series(not patterns, index=rows.index)
    for pattern in patterns:
        if pattern == "latest":
            hit = rows.started == rows.started.max()
        else:
            hit = pd.Series([any(fnmatchcase(n, pattern) for n in both) for both in zip(rows.id, rows.name, strict=True)], rows.index, bool)
        if not hit.any():
            raise InputError("No run is called so.", got=pattern, do=did_you_mean(pattern, rows.id))
        keep |= hit
    known = {"tag", *SHORT, *(key for leaves in rows.leaves for key in leaves)}
    for item in where:
        key, equals, wanted = (part.strip() for part in item.partition("="))
        if not equals or key not in known:
            raise InputError("A condition on runs cannot be used.", got=item, expected="key=value", do=did_you_mean(key, known))
        if key == "tag":
            keep &= np.array([wanted.casefold() in row.casefold().split(", ") for row in rows.tags], bool)
            continue
        values = rows[key] if key in SHORT else [leaves.get(key, math.nan) for leaves in rows.leaves]
        keep &= np.array([_is(value, wanted) for value in values], bool)
    return rows[keep].reset_index(drop=True)


def _is(value: Any, wanted: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(wanted) == value
        except ValueError:
            return False
    return _text(value) == wanted


def _text(value: Any) -> str:
    """A value as it stands in a config."""
    if value is None or isinstance(value, bool):
        return str({None: "null", True: "true", False: "false"}[value])
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """The config's keys in which runs differ: key, and a column of values a run, by id; what a config has no place for is empty."""
    readable = rows[rows.leaves.map(len) > 0]
    sections = {key.partition(".")[0]: None for leaves in readable.leaves for key in leaves}
    keys = sorted({key for leaves in readable.leaves for key in leaves}, key=lambda key: (list(sections).index(key.partition(".")[0]), key))
    values = {key: [_text(leaves[key]) if key in leaves else "" for leaves in readable.leaves] for key in keys}
    unequal = [[key, *found] for key, found in values.items() if len(set(found)) > 1]
    return pd.DataFrame(unequal, columns=["key", *readable.id])


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs whose WER is of the same test clips under the same normaliser: of several such sets the largest, of equals the newest."""
    rated = rows[rows.wer.notna()]
    counts = rated.heard.map(rated.heard.value_counts())
    return rated[rated.heard == rated.heard[counts == counts.max()].iloc[-1]] if len(rated) else rated


def pareto(rows: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Which runs no other dominates; less is better in both columns.

    A run dominates another if it is as good in both and better in one (Pareto, 1906), so equal runs stand or fall together. A run of which
    a value is missing neither stands nor dominates. Estimates are compared as they are: their intervals are not looked at.

    Returns:
        A truth value a row, with the table's index.
    """
    x_R, y_R = rows[x].to_numpy(float), rows[y].to_numpy(float)
    as_good = (x_R[None, :] <= x_R[:, None]) & (y_R[None, :] <= y_R[:, None])
    better = (x_R[None, :] < x_R[:, None]) | (y_R[None, :] < y_R[:, None])
    known_R = ~(np.isnan(x_R) | np.isnan(y_R))
    return pd.Series(known_R & ~(as_good & better).any(axis=1), index=rows.index)


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Label, step and wer (a fraction) of every validation of every run that can be read."""
    known = {r["label"]: Run(r["path"]) for r in rows[rows.state != "broken"].to_dict("records")}
    parts = [run.validations().assign(label=label) for label, run in known.items() if run.config.transcribes]
    found = pd.concat([p for p in parts if "wer" in p] or [pd.DataFrame(columns=["label", "step", "wer"])])
    return found[["label", "step", "wer"]].reset_index(drop=True)


def by_condition(rows: pd.DataFrame) -> pd.DataFrame:
    """The trained systems of runs under all conditions that they were heard in: as :func:`speechlab.results.summary`, a label a system."""
    parts = []
    for row in rows[rows.state != "broken"].to_dict("records"):
        run = Run(row["path"])
        if found := [replace(e, system=row["label"]) for e in _evaluations(run)]:
            parts.append(results.summary(found, run.config.evaluation, run.config.seed))
    return results.usual(pd.concat(parts)) if parts else pd.DataFrame()


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """The table to be read, with :data:`FORMATS` for its numbers."""
    rated = zip(100 * rows.wer, 100 * rows.low, 100 * rows.high, strict=True)
    return pd.DataFrame(
        {
            "run": rows.id,
            "model": [", ".join(filter(None, both)) for both in zip(rows.family, rows.weights, strict=True)],
            "state": rows.state,
            "started": rows.started.map(day),
            "dev WER": 100 * rows.dev,
            "WER, 95 %": ["–" if wer != wer else f"{wer:.2f} [{low:.2f}, {high:.2f}]" for wer, low, high in rated],
            "RTFx": rows.rtfx,
            "training": [clock(s) if s == s else "–" for s in rows.seconds],
            "clips": rows.clips,
            "disk": rows.disk.map(size),
        }
    )


def day(when: Any) -> str:
    """The date of a time, in UTC."""
    return "–" if pd.isna(when) else f"{when:%Y-%m-%d}"


def usage(rows: pd.DataFrame) -> pd.DataFrame:
    """What each run takes by kind, the largest first, and the sum: to be read."""
    parts = pd.DataFrame([disk(path) for path in rows.path], columns=list(KINDS), index=rows.id)
    parts = parts.assign(total=parts.sum(axis=1)).sort_values("total", ascending=False, kind="stable")
    parts.loc["all"] = parts.sum()
    return parts.map(size).rename_axis("run").reset_index()
