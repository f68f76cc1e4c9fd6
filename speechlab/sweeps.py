"""A sweep is a directory of runs: the space, one run directory for each trial, the best config as YAML::

    reports/<sweep id>/
      base.yaml       the experiment that is varied
      sweep.json      space, number of trials, seed
      <trial>/        a run directory each (see speechlab.runs), its values in trial.json
      best.yaml       the config with the lowest validation WER, once there is one

All trials are drawn when the sweep is made, by random search (Bergstra & Bengio, 2012): a pure function of (space, seed),
so they can be looked at before they cost anything, and a sweep that was interrupted goes on with the same ones. Knows
neither Ray nor a view.

Not covered: samplers that learn from earlier trials.
"""

from __future__ import annotations

import copy
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from speechlab import config as configs
from speechlab import versions
from speechlab.errors import InputError, did_you_mean
from speechlab.runs import Run, State, ended, per_step, place, write_atomic
from speechlab.units import Seconds

KINDS = {"choice": None, "uniform": 2, "loguniform": 2, "randint": 2}
DIMENSION = re.compile(r"([a-z][\w.]*)\s*=\s*([a-z]+)\((.*)\)\s*")
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # which YAML 1.1 reads as text


@dataclass(frozen=True)
class Dimension:
    """One value of the config that is varied.

    Attributes:
        key: ``section.key`` of it.
        kind: ``choice``, ``uniform``, ``loguniform`` (both from a to b) or ``randint`` (a to b, b included).
        values: What is chosen from, or a and b.
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    def draw(self, rng: np.random.Generator) -> Any:
        """One value of it, as YAML holds it."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(rng.integers(low, high + 1))
        if self.kind == "uniform":
            return float(f"{rng.uniform(low, high):.4g}")
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.4g}")


def space(texts: list[str] | tuple[str, ...]) -> tuple[Dimension, ...]:
    """Read a search space.

    Args:
        texts: One dimension each: ``optim.lr=loguniform(1e-5, 1e-3)``, ``model.lora.rank=choice(4, 8, 16)``.

    Raises:
        InputError: if one cannot be read, or stands twice.
    """
    found: dict[str, Dimension] = {}
    for text in texts:
        match = DIMENSION.fullmatch(text.strip())
        if not match or match[2] not in KINDS:
            do = did_you_mean(match[2], KINDS) if match else "for example optim.lr=loguniform(1e-5, 1e-3)"
            raise InputError("A dimension of the search space cannot be read.", got=text, expected="section.key=kind(values)", do=do)
        key, kind = match[1], match[2]
        try:
            values = tuple(yaml.safe_load(f"[{match[3]}]"))
        except yaml.YAMLError as e:
            raise InputError(
                f"The values of {key} cannot be read.", got=match[3], expected="values, separated by commas", do=str(e)
            ) from None
        if kind == "choice" and values:
            values = tuple(float(v) if isinstance(v, str) and EXPONENT.fullmatch(v) else v for v in values)
        elif kind == "choice" or len(values) != 2:
            raise InputError(
                f"The values of {key} do not suit {kind}.", got=match[3], expected="at least one" if kind == "choice" else "two"
            )
        else:
            values = _limits(key, kind, values)
        if key in found:
            raise InputError("A dimension stands twice in the search space.", got=key, expected="each once")
        found[key] = Dimension(key, kind, values)
    if not found:
        raise InputError("The search space is empty.", got="nothing", expected="at least one dimension, section.key=kind(values)")
    return tuple(found.values())


def _limits(key: str, kind: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        low, high = (float(v) for v in values)  # YAML 1.1 reads 1e-5 as text
    except (TypeError, ValueError):
        raise InputError(f"The limits of {key} are no numbers.", got=f"{values}", expected="two numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "loguniform" and low <= 0):
        expected = "0 < low < high" if kind == "loguniform" else "low < high"
        raise InputError(f"The limits of {key} cannot be used.", got=f"{low:g} and {high:g}", expected=expected)
    if kind == "randint" and not (low.is_integer() and high.is_integer()):
        raise InputError(f"The limits of {key} are no whole numbers.", got=f"{low:g} and {high:g}", expected="two whole numbers")
    return (int(low), int(high)) if kind == "randint" else (low, high)


@dataclass(frozen=True)
class Trial:
    """What is known of a trial: its state if nobody drives it, its validations, seconds of steps, and the values it tries."""

    state: State
    validations: pd.DataFrame
    seconds: Seconds
    values: dict[str, Any]


class Sweep:
    """A sweep's directory.

    Args:
        path: The directory.

    Raises:
        InputError: if it is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._read: dict[str, tuple[Any, Trial]] = {}
        try:
            self._about = json.loads((self.path / "sweep.json").read_text("utf-8"))
        except (OSError, ValueError):
            raise InputError("This is not a sweep: it holds no sweep.json.", got=str(path), expected="reports/<sweep id>") from None

    @classmethod
    def create(
        cls, experiment: configs.Experiment, dimensions: tuple[Dimension, ...], trials: int, root: str | Path | None = None
    ) -> Sweep:
        """Make a sweep and the runs of all its trials; each is validated before any is trained.

        Args:
            experiment: What is varied; its seed draws the trials too.
            dimensions: From :func:`space`.
            trials: How many are drawn; equal ones once.
            root: Where it is made; none is ``reports``.

        Raises:
            InputError: if a value that can be drawn does not suit the config, or it is a pretraining.
        """
        if not experiment.transcribes:
            raise InputError(
                "A sweep goes by the WER, which a pretraining has not.", got="model.objective: pretraining", expected="transcripts"
            )
        experiment = versions.pin(experiment)  # the same for all trials
        rng = np.random.default_rng([experiment.seed, 0x5EE9])
        drawn = [{d.key: d.draw(rng) for d in dimensions} for _ in range(trials)]
        values = list({json.dumps(v, sort_keys=True): v for v in drawn}.values())
        # a trial trains in one process of its own, and the sweep is what is followed
        plain = experiment.model_dump()
        plain["cluster"] |= {"workers": 0, "workers_min": None}
        plain["tracking"] |= {"enabled": False}
        made = [configs.validate(_replaced(plain, v), f"trial {number}") for number, v in enumerate(values, 1)]
        path = place(experiment, root) / f"{experiment.name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}"
        path.mkdir(parents=True)
        (path / "base.yaml").write_text(experiment.to_yaml(), "utf-8")
        names = []
        for number, (one, v) in enumerate(zip(made, values, strict=True), 1):
            run = Run.create(one.model_copy(update={"name": f"trial-{number:03d}"}), path)
            write_atomic(run.path / "trial.json", json.dumps(v).encode())
            names.append(run.id)
        about = {"name": experiment.name, "seed": experiment.seed, "space": [vars(d) for d in dimensions], "trials": names}
        write_atomic(path / "sweep.json", json.dumps(about, indent=1).encode())
        return cls(path)

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The space."""
        return tuple(Dimension(d["key"], d["kind"], tuple(d["values"])) for d in self._about["space"])

    @property
    def runs(self) -> list[Run]:
        """The trials' runs, in order."""
        return [Run(self.path / name) for name in self._about["trials"]]

    def table(self) -> pd.DataFrame:
        """One row a trial as it stands: trial, state, epochs, wer and best (fractions), seconds, and a column a dimension."""
        rows = []
        for run in self.runs:
            trial = self._trial(run)
            seen = trial.validations
            rows.append(
                {
                    "trial": run.id.split("-")[1],
                    "state": "running" if run.locked() else trial.state,
                    "epochs": int(seen.epoch.max()) + 1 if len(seen) else 0,
                    "wer": float(seen.wer.iloc[-1]) if len(seen) else math.nan,
                    "best": float(seen.wer.min()) if len(seen) else math.nan,
                    "seconds": trial.seconds,
                    **trial.values,
                }
            )
        return pd.DataFrame(rows)

    def curves(self) -> pd.DataFrame:
        """Trial, epoch (from 1) and wer of every validation of every trial."""
        parts = [self._trial(run).validations.assign(trial=run.id.split("-")[1]) for run in self.runs]
        found = pd.concat([p for p in parts if "wer" in p] or [pd.DataFrame(columns=["trial", "epoch", "wer"])])
        return found.assign(epoch=found.epoch + 1)[["trial", "epoch", "wer"]].reset_index(drop=True)

    def _trial(self, run: Run) -> Trial:
        """What a run's events say, read again only where some have come: a board asks every second."""
        events = run.path / "events.jsonl"
        grown = events.stat().st_size if events.exists() else 0
        if self._read.get(run.id, (None,))[0] != grown:
            found = run.events()
            steps = per_step(found, "step")
            values = json.loads((run.path / "trial.json").read_text("utf-8"))
            seconds = float(steps.step_seconds.sum()) if len(steps) else 0.0
            self._read[run.id] = grown, Trial(ended(found), per_step(found, "validation"), seconds, values)
        return self._read[run.id][1]

    def keep_best(self) -> Path | None:
        """Write the config with the lowest validation WER; a run of its own can be made of it.

        Returns:
            ``best.yaml``, or None while no trial was validated.
        """
        table = self.table()
        if not len(table) or table.best.isna().all():
            return None
        row = int(np.nanargmin(table.best.to_numpy()))
        base = configs.load(self.path / "base.yaml")
        values = self._trial(self.runs[row]).values
        best = configs.validate(_replaced(base.model_dump(), values) | {"name": f"{base.name}-tuned"[:64]}, "the best trial")
        head = (
            f"# The best of {len(table)} trials of {self.id}: validation WER {100 * table.best.min():.2f} %, the lowest of many and so\n"
            "# too good; what it is worth, the test clips say.\n#   command:   speechlab report --config best.yaml\n"
        )
        write_atomic(self.path / "best.yaml", (head + best.to_yaml()).encode())
        return self.path / "best.yaml"


def _replaced(plain: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A config's plain values with some of them replaced."""
    result = copy.deepcopy(plain)
    for key, value in values.items():
        configs.put(result, key, value)
    return result
