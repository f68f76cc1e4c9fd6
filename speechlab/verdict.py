"""Whether one run repeated another: to the bit, in its error rate, in its inputs only, or not.

:func:`compare` is a pure function of two run directories. Weights are compared by the chain of their digests and losses as the
exact numbers that they are, so a verdict names the first step that differs; what differs between the two records stands beside it.

Not covered: more than two runs; how far apart weights are that differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from speechlab import comparison, pairs, provenance, runs
from speechlab.config import leaves
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.statistics import Interval
from speechlab.utterances import some

Level = Literal["bit-exact", "statistically equal", "same code and data", "different"]
# without these equal, a run is no repetition of the other, whatever its WER
INPUTS = ("code", "configuration.", "data.", "weights.sha256", "seeds.")
WHERE = ("configuration.cluster.", "configuration.evaluation.")  # how it ran and is judged, not what was trained
EXACT = ("lr", "clips", "tokens", "audio_seconds", "loss", "grad_norm")  # of a step event: what does not hang on the clock
# of a config: names, and where things are or are kept
PLACES = ("corpus.root", "corpus.decisions", "evaluation.noise")
LOST = "with changes that were not kept"
ASIDE = (*PLACES, "name", "question", "seed", "tracking.", "cluster.storage", "cluster.device_seconds")


@dataclass(frozen=True)
class Change:
    """Something that differs between two records.

    Attributes:
        what: Dotted name, of which the first part is the record's row.
        original: In the original.
        again: In the other run.
    """

    what: str
    original: Any
    again: Any


@dataclass(frozen=True)
class Verdict:
    """What became of an attempt to reproduce a run.

    Attributes:
        level: ``bit-exact``: all losses and digests of weights are equal; ``statistically equal``: they are not, but the interval of
            the difference in WER lies within the margin on both sides; ``same code and data``: it does not decide, or there is
            none; ``different``: the WER is, or code, configuration, data, initial weights or seed are.
        first_step: Of the run, that differs; None if none does.
        reason: What differs in it, or why nothing could be compared.
        steps: That were compared.
        digests: Of weights, after checkpoints and between them, that were compared.
        changes: What differs between the two records.
        points: Difference in WER of the final evaluations, again minus original, in points; None where it was not measured.
        interval: Of that difference, in points.
        margin: Points either way that count as equal.
        text: All of it in a sentence or two.
    """

    level: Level
    first_step: int | None
    reason: str
    steps: int
    digests: int
    changes: tuple[Change, ...]
    points: float | None
    interval: Interval | None
    margin: float
    text: str


def compare(original: Run, again: Run, margin: float = comparison.MARGIN) -> Verdict:
    """Compare a run with another that was meant to repeat it.

    Args:
        original: The run.
        again: The other.
        margin: Points of WER either way that count as equal.

    Raises:
        InputError: if one of them has no steps or checkpoints to compare.
    """
    first_step, reason, steps, digests = _first(original, again)
    changed = changes(original, again)
    points, interval, note = (None, None, "") if first_step is None else _difference(original, again, margin)
    inputs = [c.what for c in changed if c.what.startswith(INPUTS) and not c.what.startswith(WHERE)]
    within = interval is not None and -margin <= interval.low and interval.high <= margin
    beyond = interval is not None and (interval.low > margin or interval.high < -margin)
    level: Level
    if first_step is None:
        level, text = (
            "bit-exact",
            f"the losses of {steps} steps and the weights after {digests} of them are equal to the bit",
        )
    else:
        level = "different" if inputs or beyond else "statistically equal" if within else "same code and data"
        text = f"step {first_step} is the first that differs: {reason}"
        text += f"; the runs differ in {', '.join(inputs)}" if inputs else ""
    if interval is not None:
        text += f"; WER {points:+.2f} points [{interval.low:+.2f}, {interval.high:+.2f}] ({interval.scope}), margin {margin:g} either way"
    elif level == "same code and data":
        text += f"; of the WER nothing is known: {note}"
    return Verdict(level, first_step, reason, steps, digests, tuple(changed), points, interval, margin, f"{level}: {text}")


def changes(original: Run, again: Run) -> list[Change]:
    """What differs between the records of two runs, in the order of their rows; what one of them never recorded is left out."""
    a, b = _facts(original), _facts(again)
    for ours, theirs in ((a, b), (b, a)):
        if "dependencies.packages" in ours and "dependencies.packages" in theirs:  # both list all of them
            ours.update((k, None) for k in theirs if k.startswith("dependencies.") and k not in ours)
    # of code that was not kept nobody knows whether it was the same
    found = [Change(k, a[k], b[k]) for k in a if k in b and (a[k] != b[k] or (k == "code" and LOST in a[k]))]
    kept = [provenance.clips(run) for run in (original, again)]
    if kept[0] is not None and kept[1] is not None and kept[0] != kept[1]:
        found += [Change("data.differing", None, line) for line in differing(kept[0], kept[1])]
    return found


def _first(original: Run, again: Run) -> tuple[int | None, str, int, int]:
    """The first step that differs, what differs in it, and how many steps and digests were compared."""
    a, b = ({kind: _by_step(run, kind) for kind in ("step", "checkpoint")} for run in (original, again))
    for run, found in ((original, a), (again, b)):
        if not found["step"] or not found["checkpoint"]:
            raise InputError(f"Run {run.id} has nothing to compare.", got=run.state, expected="a run with steps and a checkpoint")
    kept = [provenance.digests(run.events()) for run in (original, again)]
    common = kept[0].keys() & kept[1].keys()  # one that was interrupted has more of them
    for step in sorted(a["step"].keys() | b["step"].keys()):
        if step not in a["step"] or step not in b["step"]:
            return step, f"{original.id if step in a['step'] else again.id} alone has it", step - 1, len(common)
        ours, theirs = a["step"][step], b["step"][step]
        differ = [f"{k} {ours[k]!r} and {theirs[k]!r}" for k in EXACT if k in ours and k in theirs and not _same(ours[k], theirs[k])]
        if not differ and step in common and kept[0][step] != kept[1][step]:
            differ = ["the weights after it"]
        if differ:
            return step, ", ".join(differ), len(a["step"]), len(common)
    if max(a["checkpoint"]) != max(b["checkpoint"]):
        step = min(max(a["checkpoint"]), max(b["checkpoint"])) + 1
        return step, "one of the runs has no checkpoint from here on", len(a["step"]), len(common)
    return None, "", len(a["step"]), len(common)


def _by_step(run: Run, kind: str) -> dict[int, dict[str, Any]]:
    rows = runs.per_step(run.events(), kind).to_dict("records")
    return {int(row["step"]): {str(k): v for k, v in row.items()} for row in rows}


def _same(a: Any, b: Any) -> bool:
    return bool(a == b or (a != a and b != b))  # a step that fp16 skipped has no norm


def _difference(original: Run, again: Run, margin: float) -> tuple[float | None, Interval | None, str]:
    """Of the WER on clean test clips, again minus original, if both were evaluated on the same; else why not."""
    try:
        both = pairs.pair(str(original.path), str(again.path), normaliser=original.config.evaluation.normaliser)
        found = both.difference()
    except InputError as e:
        return None, None, str(e).splitlines()[0]
    interval = comparison.judge(found, margin).interval
    return found.points, None if math.isnan(interval.low) else interval, interval.warning


def _facts(run: Run) -> dict[str, Any]:
    """What was recorded of a run, flat, by row."""
    kept = run.provenance
    starts = [e for e in run.events() if e["kind"] == "start"]
    facts: dict[str, Any] = {"code": code(kept["code"])} if "code" in kept else {}
    facts |= {f"configuration.{k}": v for k, v in leaves(run.config.model_dump(mode="json")) if not k.startswith(ASIDE)}
    facts |= {"data.clips": kept["data"]["manifest_sha256"]} if "data" in kept else {}
    facts |= {f"weights.{k}": v for k, v in kept.get("weights", {}).items() if k in ("name", "sha256")}
    facts["seeds.seed"] = run.config.seed
    needed = kept.get("dependencies", {})
    facts |= {f"dependencies.{k}": v for k, v in needed.items() if k != "packages_sha256"}
    if (run.path / "packages.txt").exists():
        listed = (line.split("==", 1) for line in (run.path / "packages.txt").read_text("utf-8").splitlines())
        facts |= {f"dependencies.{name}": version for name, version in listed if name != "speechlab"}
    facts |= {f"execution.{k}": v for k, v in leaves(kept.get("execution", {})) if k != "environment.OMP_NUM_THREADS"}
    if starts:
        facts |= {f"execution.{k}": starts[0].get(k) for k in ("workers", "device", "precision", "device_seconds")}
        facts["execution.threads"] = threads(run)
    facts |= {f"hardware.{k}": v for k, v in kept.get("hardware", {}).items()}
    return facts


def threads(run: Run) -> int | None:
    """Of each worker, as the run began; None where they were not counted, as on a GPU."""
    path = run.path / "threads.json"
    counted = json.loads(path.read_text("utf-8")) if path.exists() else {}
    workers = next((e["workers"] for e in run.events() if e["kind"] == "start"), 1)
    known: int | None = counted.get(str(workers), run.provenance.get("execution", {}).get("threads"))
    return known


def code(row: Mapping[str, Any]) -> str:
    """The row of a record that says which code ran, in words."""
    known = row.get("patch_sha256")
    lost = row.get("left_out") or (row.get("dirty") and "patch" not in row)
    return f"{row['git_sha']}" + (f" with patch {known[:12]}" if known else "") + (f" {LOST}" if lost else "")


def differing(kept: list[str], found: list[str]) -> Iterator[str]:
    """What differs between two manifests, a phrase a kind.

    Args:
        kept: Lines of the manifest as it was.
        found: As it is.
    """
    a, b = ({row["id"]: row for row in map(json.loads, lines)} for lines in (kept, found))
    for what, ids in (("missing", a.keys() - b.keys()), ("new", b.keys() - a.keys())):
        if ids:
            yield f"{len(ids)} {what}: {some(sorted(ids))}"
    for field in ("audio", "text", "split", "duration", "speaker", "language", "gain", "start", "columns"):
        other = [key for key in sorted(a.keys() & b.keys()) if a[key].get(field) != b[key].get(field)]
        if other:
            yield f"{len(other)} with another {field}: {some(other)}"
