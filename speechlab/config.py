"""The experiment as frozen pydantic models: read strictly, all errors at once, never mutated.

A config file is YAML with a header that gives command, cost and expected result. What does not
change results (workers, devices, addresses, paths) is not part of an experiment's identity: see
:meth:`Experiment.signature`.
"""

from __future__ import annotations

import hashlib
import json
import math
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from speechlab.errors import InputError, did_you_mean
from speechlab.units import Decibels, Seconds

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, types are not coerced, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CorpusConfig(Section):
    """Which speech, and how much of it."""

    name: str = Field("prompts", description="a corpus of speechlab.corpora")
    language: str = Field("en", description="BCP-47 language of the clips")
    root: str | None = Field(None, description="where the corpus lies, for corpora the user brings")
    limit: int | None = Field(None, ge=1, description="at most so many clips a split, for smoke runs")
    max_seconds: Seconds = Field(30.0, gt=0, le=30, description="longer clips are set aside: Whisper hears 30 s")


class ModelConfig(Section):
    """Which weights to start from."""

    family: str = Field("whisper", description="a family of speechlab.models")
    weights: str = Field("tiny.en", description="a path, a name, or a hub id")
    revision: str | None = Field(None, description="hub revision, to pin")


class ContextConfig(Section):
    """How much silence the encoder hears around a clip, while training and while decoding.

    Training draws the margin per micro-batch from ``[margin_min, margin_max]`` and gives a share
    ``full_fraction`` of them the whole 30 s, so that the model works in both contexts.
    """

    margin_min: Seconds = Field(0.5, ge=0, le=30)
    margin_max: Seconds = Field(2.0, ge=0, le=30)
    full_fraction: float = Field(0.08, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> ContextConfig:
        if self.margin_max < self.margin_min:
            got = f"margin_max {self.margin_max} below margin_min {self.margin_min}"
            raise ValueError(f"got {got}, expected margin_min <= margin_max; swap them")
        return self


class OptimConfig(Section):
    """AdamW (Loshchilov & Hutter, 2019), linear warm-up, then cosine to ``lr_min``."""

    lr: float = Field(3e-5, gt=0, le=1)
    lr_min: float = Field(1e-6, ge=0, le=1)
    warmup_steps: int = Field(1000, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")

    @model_validator(mode="after")
    def _ordered(self) -> OptimConfig:
        if self.lr_min > self.lr:
            raise ValueError(f"got lr_min {self.lr_min} above lr {self.lr}, expected lr_min <= lr; lower lr_min")
        return self


class TrainingConfig(Section):
    """How long, in what steps, at what precision."""

    epochs: int = Field(3, ge=1)
    batch_seconds: Seconds = Field(60.0, gt=0, description="audio of one optimizer step, padding included")
    micro_batches: int = Field(2, ge=1, description="equal parts of a step, dealt to the workers or accumulated")
    precision: Literal["fp32", "bf16"] = "bf16"
    keep_last: int = Field(3, ge=1, description="checkpoints kept besides the best")
    checkpoint_steps: int | None = Field(None, ge=1, description="a checkpoint every so many steps, beside each epoch's")


class EvaluationConfig(Section):
    """What is measured on the test split."""

    snr: Decibels = Field(10.0, ge=-20, le=60, description="of the noisy condition, over active speech")
    normaliser: Literal["raw", "basic", "english"] = "english"
    batch_size: int = Field(16, ge=1, description="clips decoded together")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples behind an interval")


class ClusterConfig(Section):
    """Where the work is done; never part of an experiment's identity."""

    workers: int = Field(1, ge=0, le=1024, description="Ray workers; 0 trains in this process without Ray")
    address: str | None = Field(None, description="a running Ray cluster; none starts one here")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    device_seconds: Seconds = Field(240.0, gt=0, description="audio heard in one forward pass, context included: bounds memory")
    loader_workers: int = Field(0, ge=0, le=64, description="processes that prepare input, per worker; 0 is in the worker")
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker")
    storage: str | None = Field(None, description="folder that all nodes share, for the run directories")


class TrackingConfig(Section):
    """Where the record is kept; never part of an experiment's identity."""

    uri: str | None = Field(None, description="MLflow tracking URI; none is SQLite beside the runs")
    experiment: str = Field("speechlab", min_length=1)
    enabled: bool = True


class Experiment(Section):
    """Everything that an experiment is."""

    name: Name
    question: str = Field(min_length=1, description="the sentence the report opens with")
    seed: int = Field(1, ge=0, lt=2**31)
    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    context: ContextConfig = ContextConfig()
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _micro_batches_fit_workers(self) -> Experiment:
        if self.cluster.workers and self.training.micro_batches % self.cluster.workers:
            raise ValueError(
                f"got training.micro_batches {self.training.micro_batches} for cluster.workers {self.cluster.workers}, "
                "expected equal parts for every worker; make micro_batches a multiple of workers"
            )
        return self

    @property
    def signature(self) -> str:
        """SHA-256 (first 12 hex digits) over what changes results, in canonical JSON.

        Left out: name, question, ``cluster`` and ``tracking``, ``corpus.root``. The manifest's hash,
        not a path, says which speech it was.
        """
        kept = self.model_dump(exclude={"name": True, "question": True, "cluster": True, "tracking": True, "corpus": {"root"}})
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """The resolved config, every default spelled out; :func:`load` reads it back to an equal one."""
        values = self.model_dump()
        breaks = set("\x85\u2028\u2029") & set(json.dumps(values, ensure_ascii=False))  # PyYAML folds these unless it escapes
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=not breaks)


def home() -> Path:
    """The project folder: the nearest one above the working directory that holds ``configs``, else the working directory.

    Notebooks run in ``notebooks/`` under JupyterLab and in the project under papermill; both mean the same files.
    """
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "configs").is_dir()), here)


def reports() -> Path:
    """Where runs are kept."""
    return home() / "reports"


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Experiment:
    """Read a config file.

    Args:
        path: A YAML file.
        overrides: ``section.key=value`` texts that replace values of the file; the value is YAML.

    Raises:
        InputError: if the file is missing, is not YAML, or any values do not fit: all of them are
            listed at once, each with what was got, what was expected and, for a misspelt key, the
            nearest known one.
    """
    path = Path(path)
    if not path.is_absolute() and not path.exists():
        path = home() / path
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        known = sorted(f"configs/{p.name}" for p in (home() / "configs").glob("*.yaml"))
        do = f"choose one of: {', '.join(known)}" if known else "name an existing file"
        raise InputError("The config file does not exist.", got=str(path), expected="a YAML file", do=do) from None
    except UnicodeDecodeError as e:
        raise InputError("The config file is not UTF-8.", got=f"{path}: {e}", expected="UTF-8 text", do="save it as UTF-8") from None
    except OSError as e:
        do = "check the path and its permissions"
        raise InputError("The config file cannot be read.", got=f"{path}: {e.strerror}", expected="a readable file", do=do) from None
    values = _parse(text, str(path))
    for item in overrides:
        _override(values, item)
    return validate(values, str(path))


def validate(values: dict[str, Any], source: str) -> Experiment:
    """Check plain values and freeze them; all errors at once.

    Raises:
        InputError: as for :func:`load`.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as e:
        problems = [_explain(err) for err in e.errors()]
        count = f"{len(problems)} value{'s' if len(problems) > 1 else ''}"
        raise InputError(f"{source}: {count} cannot be used.\n" + "\n".join(problems), do=f"mend each in {source}") from None


def _override(values: dict[str, Any], item: str) -> None:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise InputError("An override cannot be read.", got=item, expected="section.key=value", do="for example training.epochs=1")
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            do = "for example training.epochs=1"
            raise InputError("An override names a value as if it were a section.", got=item, expected="section.key=value", do=do)
    values[last] = _yaml(value, f"override {key.strip()}")


def _parse(text: str, source: str) -> dict[str, Any]:
    values = _yaml(text, source)
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        do = "start from configs/quickstart.yaml"
        raise InputError(f"{source} does not hold a mapping.", got=got, expected="key: value lines", do=do)
    return values


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, and stricter
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # the last two: a date like 2001-99-99, and deep nesting
        expected = "plain YAML: no tags, no anchors, each key once"
        do = "mend the place named above"
        raise InputError(f"{source} is not YAML that can be used.", got=str(e), expected=expected, do=do) from None


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that also refuses tags, duplicate keys (the last would win, silently) and anchors (aliases can explode)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        for what in ("anchor", "tag"):
            if getattr(event, what, None) is not None:
                value = getattr(event, what)
                raise yaml.composer.ComposerError(None, None, f'the {what} "{value}" is not accepted', event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # << merges another mapping in
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f'the key "{key.value}" stands twice', key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _explain(err: Any) -> str:
    """One problem as ``- where: got ..., expected ...; what to do``."""
    where = ".".join(str(part) for part in err["loc"]) or "config"
    got, kind = err.get("input"), err["type"]
    if kind in {"extra_forbidden", "invalid_key"}:
        key = str(err["loc"][-1])
        return f"- {where}: got the unknown key {key!r}, expected a known one; {did_you_mean(key, _fields(err['loc'][:-1]))}"
    if kind == "missing":
        return f"- {where}: got nothing, expected a value; add a line {err['loc'][-1]}: ..."
    if kind == "value_error":
        return f"- {where}: {err['ctx']['error']}"
    expected = err["msg"].removeprefix("Input should be ").replace("String should ", "text to ")
    if kind == "model_type":
        expected = f"a section with any of {', '.join(_fields(err['loc']))}"
    return f"- {where}: got {repr(got)[:80]} ({type(got).__name__}), expected {expected}{_remedy(kind, got)}"


def _remedy(kind: str, got: Any) -> str:
    """What to write instead, where YAML 1.1 read a scalar as another type than was meant."""
    if kind == "string_type" and isinstance(got, bool | int | float | date):
        return "; write it in quotes"
    if kind not in {"float_type", "int_type"} or not isinstance(got, str | float):
        return ""
    try:
        number = float(got)
    except ValueError:
        return ""
    if not math.isfinite(number) or (kind == "int_type" and not number.is_integer()):
        return ""
    return f"; write {int(number) if kind == 'int_type' else _yaml_float(number)} without quotes"


def _yaml_float(x: float) -> str:
    """A float as YAML 1.1 reads it back: an exponent needs a point before it, unlike in ``1e-05``."""
    mantissa, e, exponent = repr(x).partition("e")
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}{e}{exponent}"


def _fields(loc: tuple[Any, ...]) -> list[str]:
    model: Any = Experiment
    for part in loc:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
