"""The experiment as frozen pydantic models: read strictly, all errors at once, never mutated.

A config file is YAML with a header that gives command, cost and expected result. What does not
change results (workers, devices, addresses, paths) is not part of an experiment's identity: see
:meth:`Experiment.signature`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from speechlab.errors import InputError, did_you_mean
from speechlab.units import Decibels, Hertz, Seconds

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
# a password after the user, wherever SQLAlchemy would read one; a user before a web server, where it may be a token; one in the query
PASSWORD = re.compile(r"^[\w+.-]+://[^:/@]*:[^@]+@|^https?://[^/?#]*@|[?&;]\w*(password|passwd|secret|token)\w*=.", re.IGNORECASE)
BREAKS = frozenset("\x85\u2028\u2029")  # PyYAML folds these unless it escapes
PASSWORDS = "PGPASSWORD, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def _no_password(uri: str | None) -> str | None:
    if uri and PASSWORD.search(uri):
        raise ValueError(f"got a URI with a password in it, which is not shown here and would be in every record of the run, "
                         f"expected one without; take it out and give it in the environment: {PASSWORDS}")  # fmt: skip
    return uri


Uri = Annotated[str | None, AfterValidator(_no_password)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, types are not coerced, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Settings = TypeVar("Settings", bound=Section)


Remark = Literal["truncated", "clipped", "quiet", "noisy", "narrow_band", "little_speech", "characters", "speaking_rate", "ctc",
                 "shared_text", "shared_speaker"]  # fmt: skip


class CheckConfig(Section):
    """What a clip must be to be accepted, and what is only remarked on."""

    min_seconds: Seconds = Field(0.1, ge=0.0126, description="shorter clips are set aside; a front end's window needs 201 samples")
    tolerance: Seconds = Field(0.1, gt=0, description="how far a duration may be from what the corpus says")
    clipped_share: float = Field(0.001, gt=0, le=1, description="share of samples at full scale from which a clip counts as clipped")
    dc: float = Field(0.03, gt=0, le=1, description="mean of the samples, of full scale 1, from which it is taken out: a repair")
    min_level: Decibels = Field(-50.0, ge=-120, le=0, description="active level in dBFS below which a clip counts as quiet")
    min_snr: Decibels = Field(10.0, ge=-20, le=100, description="estimated SNR below which a clip counts as noisy")
    min_bandwidth: Hertz = Field(4500, ge=0, le=8000, description="Hz below which a wideband file counts as narrow-band")
    min_speech_share: float = Field(0.1, ge=0, le=1, description="share of speech by VAD below which a clip has little speech")
    rate_deviations: float = Field(5.0, gt=0, description="robust standard deviations at which a speaking rate is an outlier")
    alphabet: str | None = Field(None, description="characters that texts may hold; none allows any")
    ctc_frames: float = Field(50.0, gt=0, description="frames a second that a CTC model gives, to tell texts that cannot be aligned")
    long: Literal["drop", "split"] = Field("drop", description="clips over corpus.max_seconds: set aside, or cut at pauses")
    vad: bool = Field(True, description="look for speech; about a minute for each hour of audio")
    set_aside: tuple[Remark, ...] = Field(("truncated",), strict=False, description="remarks that set a clip aside")


class CorpusConfig(Section):
    """Which speech, and how much of it."""

    name: str = Field("prompts", description="a corpus of speechlab.corpora")
    language: str = Field("en", description="BCP-47 language of the clips; several, separated by commas, are joined")
    voice: str | None = Field(None, description="of the corpora that have several: none is the first")
    band: Literal["wide", "telephone"] = Field("wide", description="16 kHz, or the same speech at 8 kHz where the corpus has both")
    root: str | None = Field(None, description="where the corpus lies, for corpora the user brings")
    limit: int | None = Field(None, ge=1, description="at most so many clips a split, for smoke runs")
    max_seconds: Seconds = Field(30.0, gt=0, le=30, description="longer clips are set aside: Whisper hears 30 s")
    trim: Seconds | None = Field(None, ge=0, le=5, description="margin kept around speech found by VAD; none leaves clips whole")
    level: Literal["recorded", "peak", "loudness"] = Field("recorded", description="as recorded; peak in dBFS; loudness in LUFS (BS.1770)")
    level_db: Decibels = Field(-23.0, ge=-60, le=0, description="the level that peak or loudness is brought to")
    decisions: str | None = Field(None, description="file of what people decided about transcripts, applied when it is prepared")
    check: CheckConfig = CheckConfig()


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., 2022) beside chosen projections; all other weights stay as they are."""

    rank: int = Field(16, ge=1, le=512)
    alpha: float = Field(32.0, gt=0, description="the adapters' output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("q_proj", "v_proj"), min_length=1, strict=False, description="names of the layers adapted")


class VocabularyConfig(Section):
    """What a CTC model writes, made from the training transcripts where the weights bring no vocabulary."""

    kind: Literal["characters", "bpe"] = "characters"
    size: int = Field(256, ge=16, le=16_384, description="pieces of a bpe vocabulary")


class ShapeConfig(Section):
    """How large a model that starts from scratch is: a size of its family, single numbers of it changed."""

    size: str | None = Field(None, description="such as S, M, L of the conformer; none is the family's smallest")
    dim: int | None = Field(None, ge=8, le=4096)
    layers: int | None = Field(None, ge=1, le=64)
    heads: int | None = Field(None, ge=1, le=64)
    ffn: int | None = Field(None, ge=8, le=16_384, description="width of the feed-forward layers")
    kernel: int | None = Field(None, ge=1, le=255, description="frames of a convolution, odd")
    dropout: float = Field(0.1, ge=0, lt=1)


def _default_weights(values: dict[str, Any]) -> str | None:
    return "tiny.en" if values.get("family") == "whisper" else None


class ModelConfig(Section):
    """Which model, which weights to start from, and which of them learn."""

    family: str = Field("whisper", description="a family of speechlab.models")
    weights: str | None = Field(
        default_factory=_default_weights, description="path, name, hub id or models:/name@alias; none is from scratch"
    )
    revision: str | None = Field(None, description="hub revision, or SHA-256 of a registered model's file, to pin")
    objective: Literal["transcripts", "pretraining"] = Field("transcripts", description="pretraining is wav2vec2's, without transcripts")
    freeze: Literal["nothing", "features", "encoder"] = Field("nothing", description="features is the convolutions over the sound")
    lora: LoraConfig | None = None
    vocabulary: VocabularyConfig = VocabularyConfig()
    shape: ShapeConfig = ShapeConfig()

    @model_validator(mode="after")
    def _only_wav2vec2_pretrains(self) -> ModelConfig:
        if self.objective == "pretraining" and self.family != "wav2vec2":
            raise ValueError(f"got objective pretraining for {self.family}, expected it for wav2vec2; set objective to transcripts")
        return self


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


def _default_context(values: dict[str, Any]) -> ContextConfig:
    """CTC models hear a clip and nothing behind it."""
    family = values["model"].family if "model" in values else "whisper"
    return ContextConfig() if family == "whisper" else ContextConfig(margin_min=0.0, margin_max=0.0, full_fraction=0.0)


def _low_to_high(self: Any) -> Any:
    if self.low > self.high:
        raise ValueError(f"got low {self.low} above high {self.high}, expected low <= high; swap them")
    return self


class SpeedConfig(Section):
    """Speed perturbation (Ko et al., 2015): resampling, so pitch moves too; the plan knows the new durations."""

    factors: tuple[Annotated[float, Field(ge=0.5, le=2)], ...] = Field(
        (0.9, 1.0, 1.1), min_length=1, strict=False, description="one is drawn, each as likely"
    )


class GainConfig(Section):
    """A change of level."""

    probability: float = Field(1.0, ge=0, le=1)
    low: Decibels = Field(-6.0, ge=-60, le=30)
    high: Decibels = Field(6.0, ge=-60, le=30)

    _ordered = model_validator(mode="after")(_low_to_high)


class RoomConfig(Section):
    """A simulated room (image sources), labelled by the reverberation time measured on its impulse response."""

    probability: float = Field(0.3, ge=0, le=1)
    low: Seconds = Field(0.2, ge=0.1, le=2, description="shortest RT60")
    high: Seconds = Field(0.8, ge=0.1, le=2, description="longest RT60")
    rooms: int = Field(32, ge=1, le=1000, description="how many are made, once, from the seed")

    _ordered = model_validator(mode="after")(_low_to_high)


class NoiseConfig(Section):
    """Additive noise at an SNR over active speech: Gaussian, or cut from a corpus."""

    probability: float = Field(0.5, ge=0, le=1)
    low: Decibels = Field(10.0, ge=-20, le=60)
    high: Decibels = Field(30.0, ge=-20, le=60)
    root: str | None = Field(None, description="folder of noise recordings; none is Gaussian noise")

    _ordered = model_validator(mode="after")(_low_to_high)


class CodecConfig(Section):
    """Coded and decoded again, with the codec's delay taken out."""

    probability: float = Field(0.3, ge=0, le=1)
    kinds: tuple[Literal["mp3", "opus", "telephone"], ...] = Field(("mp3", "opus", "telephone"), min_length=1, strict=False)
    mp3_bitrates: tuple[Annotated[int, Field(ge=8000, le=160_000)], ...] = Field(
        (32_000, 64_000), min_length=1, strict=False, description="bit/s"
    )
    opus_bitrates: tuple[Annotated[int, Field(ge=6000, le=256_000)], ...] = Field(
        (8_000, 16_000, 24_000), min_length=1, strict=False, description="bit/s"
    )


class ClippingConfig(Section):
    """Full scale brought down, as by an input that is set too high."""

    probability: float = Field(0.1, ge=0, le=1)
    low: Decibels = Field(3.0, ge=0, le=40, description="least dB of the peak that is cut off")
    high: Decibels = Field(12.0, ge=0, le=40, description="most dB of the peak that is cut off")

    _ordered = model_validator(mode="after")(_low_to_high)


class SpecAugmentConfig(Section):
    """Masks over the spectrogram (Park et al., 2019, the LD policy without time warping)."""

    probability: float = Field(1.0, ge=0, le=1)
    frequency_masks: int = Field(2, ge=0, le=10)
    frequency_width: int = Field(27, ge=0, le=80, description="F: most mel bands of one mask, of 80")
    time_masks: int = Field(2, ge=0, le=20)
    time_width: int = Field(100, ge=0, le=1000, description="T: most 10 ms frames of one mask")
    time_share: float = Field(0.2, ge=0, le=1, description="p: most of a clip that one time mask covers")


class AugmentConfig(Section):
    """What happens to training clips on the way to the model, in this order; none of it unless it is named."""

    speed: SpeedConfig | None = None
    room: RoomConfig | None = None
    noise: NoiseConfig | None = None
    gain: GainConfig | None = None
    clipping: ClippingConfig | None = None
    codec: CodecConfig | None = None
    spec: SpecAugmentConfig | None = None


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
    batch_clips: int | None = Field(None, ge=1, description="clips of one optimizer step; none is 128, unless batch_seconds is given")
    batch_seconds: Seconds | None = Field(None, gt=0, description="most audio of one optimizer step, padding included")
    batch_tokens: int | None = Field(
        None, ge=1, description="label tokens of a step, padding included; none is 12 a second of it for Whisper"
    )
    micro_batches: int = Field(4, ge=1, description="parts of a step, dealt to the workers or accumulated")
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = Field(False, description="compute activations twice rather than keep them: less memory, more time")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the weights over steps, which is then what is validated"
    )
    average: int | None = Field(None, ge=2, description="at the end, also try the mean of the last so many checkpoints")
    patience: int | None = Field(None, ge=1, description="stop early after so many validations without a better WER")
    validate_epochs: int = Field(1, ge=1, description="validate after every so many epochs, and after the last")
    keep_last: int = Field(3, ge=1, description="checkpoints kept besides the best")
    checkpoint_steps: int | None = Field(None, ge=1, description="a checkpoint every so many steps, beside each epoch's")

    @model_validator(mode="after")
    def _averaged_are_kept(self) -> TrainingConfig:
        if self.average and self.average > self.keep_last:
            raise ValueError(f"got average {self.average} above keep_last {self.keep_last}, expected as many kept; raise keep_last")
        return self


class SearchConfig(Section):
    """Beam search with an n-gram language model, for CTC models."""

    beam: int = Field(50, ge=1, le=5000, description="hypotheses kept after each frame")
    lm_weight: float = Field(
        2.0, ge=0, description="of the language model's logarithms to base 10; find it with speechlab.fusion on dev clips"
    )
    word_score: float = Field(0.0, description="added for each word, in nats")
    lexicon: bool = Field(True, description="write words of the language model only; without, any that the labels spell")
    order: int = Field(3, ge=2, le=6, description="tokens of the longest n-gram, where the model is counted from the training transcripts")
    file: str | None = Field(None, description="an ARPA file or KenLM binary; none is counted from the training transcripts")

    @model_validator(mode="after")
    def _score_needs_words(self) -> SearchConfig:
        if not self.lexicon and self.word_score:
            raise ValueError(f"got word_score {self.word_score} without a lexicon, expected 0; set lexicon to true, or word_score to 0")
        return self


class EvaluationConfig(Section):
    """What is measured on the test split."""

    conditions: tuple[str, ...] = Field(
        ("clean", "white-10db"), min_length=1, strict=False, description="of speechlab.conditions; standard is all of the usual ones"
    )
    noise: str | None = Field(None, description="folder of recordings, for the conditions noise-Ndb")
    normaliser: Literal["raw", "basic", "english"] = "english"
    batch_seconds: Seconds = Field(240.0, gt=0, description="most audio decoded together, padding included; changes no result")
    latency: bool = Field(True, description="decode clean clips one by one too, to time them")
    search: SearchConfig | None = None
    resamples: int = Field(1000, ge=100, description="bootstrap resamples behind an interval")
    workers: int = Field(0, ge=0, le=1024, description="processes that decode, here or at cluster.address; 0 decodes in this one")


class ClusterConfig(Section):
    """Where the work is done; never part of an experiment's identity."""

    workers: int = Field(1, ge=0, le=1024, description="Ray workers; 0 trains in this process without Ray")
    workers_min: int | None = Field(None, ge=1, description="elastic: go on with as few when nodes are lost; none waits for all")
    address: str | None = Field(None, description="a running Ray cluster; none starts one here")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    device_seconds: Seconds | None = Field(None, gt=0, description="most audio of one forward pass; none finds what the memory allows")
    loader_workers: int = Field(0, ge=0, le=64, description="processes that prepare input, per worker; 0 is in the worker")
    max_failures: int = Field(2, ge=0, description="restarts after a lost worker")
    storage: Uri = Field(None, description="folder that all nodes share, or a URI that runs are copied to")


class TrackingConfig(Section):
    """Where the record is kept; never part of an experiment's identity."""

    uri: Uri = Field(None, description="MLflow tracking URI, without a password; none is SQLite beside the runs")
    artifacts: Uri = Field(None, description="where a new experiment's files go, such as s3://bucket/path; none is beside the runs, "
                           "or what a server on the web chooses")  # fmt: skip
    experiment: str = Field("speechlab", min_length=1)
    enabled: bool = True


class Experiment(Section):
    """Everything that an experiment is."""

    name: Name
    question: str = Field(min_length=1, description="the sentence the report opens with")
    seed: int = Field(1, ge=0, lt=2**31)
    corpus: CorpusConfig = CorpusConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    context: ContextConfig = Field(default_factory=_default_context)
    optim: OptimConfig = OptimConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _micro_batches_fit_workers(self) -> Experiment:
        workers, least, parts = self.cluster.workers, self.cluster.workers_min, self.training.micro_batches
        if workers and parts % workers:
            raise ValueError(
                f"got training.micro_batches {parts} for cluster.workers {workers}, "
                "expected equal parts for every worker; make micro_batches a multiple of workers"
            )
        if least and least > workers:
            raise ValueError(f"got cluster.workers_min {least} above cluster.workers {workers}, expected at most as many; lower it")
        return self

    @model_validator(mode="after")
    def _what_writes_no_text_has_no_error_rate(self) -> Experiment:
        for name in ("patience", "average"):
            if not self.transcribes and getattr(self.training, name):
                got = f"training.{name} {getattr(self.training, name)} with objective pretraining"
                raise ValueError(f"got {got}, expected null: there is no error rate to go by; set training.{name} to null")
        return self

    @property
    def transcribes(self) -> bool:
        """Whether its model writes text, and so has error rates: every one but a pretraining's."""
        return self.model.objective != "pretraining"

    @property
    def signature(self) -> str:
        """SHA-256 (first 12 hex digits) over what changes results, in canonical JSON.

        Left out: name, question, ``cluster`` and ``tracking``, ``corpus.root`` and ``corpus.decisions`` (the manifest's hash,
        not a path, says which speech it was), and what of the evaluation changes no result.
        """
        parts = {"corpus": {"root", "decisions"}, "evaluation": {"noise", "batch_seconds", "latency", "workers"}}
        kept = self.model_dump(exclude={"name": True, "question": True, "cluster": True, "tracking": True, **parts})
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def told(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Its values but for the question, by dotted name: the family and those that are not its defaults, and the others."""
        plain = Experiment(name="plain", question="?", model=ModelConfig(family=self.model.family))
        usual = dict(leaves(plain.model_dump(exclude={"name": True, "question": True, "model": {"family"}})))
        values = dict(leaves(self.model_dump(exclude={"question"})))
        same = {name: value for name, value in values.items() if name in usual and usual[name] == value}
        return {name: value for name, value in values.items() if name not in same}, same

    def to_yaml(self) -> str:
        """The resolved config, every default spelled out; :func:`load` reads it back to an equal one."""
        values = self.model_dump()
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=not BREAKS & set(json.dumps(values, ensure_ascii=False)))


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
    values = _read(path)
    for item in overrides:
        _override(values, item)
    return validate(values, str(path))


def _read(path: str | Path) -> dict[str, Any]:
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
    return _parse(text, str(path))


def validate(values: dict[str, Any], source: str) -> Experiment:
    """Check plain values and freeze them; all errors at once.

    Raises:
        InputError: as for :func:`load`.
    """
    return _validated(Experiment, values, source)


def section(kind: type[Settings], path: str | Path) -> Settings:
    """Settings of another kind from a file of their own, as strictly.

    Args:
        kind: A :class:`Section`.
        path: A YAML file.

    Raises:
        InputError: as for :func:`load`.
    """
    return _validated(kind, _read(path), str(path))


def _validated(kind: type[Settings], values: dict[str, Any], source: str) -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as e:
        # a default that follows another value is no problem of its own where that value is one
        problems = [(_where(err), _explain(err, kind)) for err in e.errors() if err["type"] != "default_factory_not_called"]
        count = f"{len(problems)} value{'s' if len(problems) > 1 else ''}"
        told = "\n".join(f"- {where or 'config'}: {why}" for where, why in problems)
        raise InputError(f"{source}: {count} cannot be used.\n{told}", do=f"mend each in {source}", problems=dict(problems)) from None


def corpus_for(path: str | Path, overrides: list[str] | tuple[str, ...] = (), **given: str | None) -> CorpusConfig:
    """The corpus of a config file, or another one under the file's limits.

    Args:
        path: A YAML file.
        overrides: ``field=value`` texts of the corpus section.
        given: Fields such as ``root``, ``name``, ``language``, ``voice`` and ``band``; empty ones are the file's. A root
            without a name is the user's own speech.

    Raises:
        InputError: as for :func:`load`.
    """
    fields = {key: value for key, value in given.items() if value}
    if "root" in fields:
        fields.setdefault("name", "own")
    return load(path, [f"corpus.{item}" for item in overrides] + [f"corpus.{k}={json.dumps(v)}" for k, v in fields.items()]).corpus


def corpus_section(**values: Any) -> CorpusConfig:
    """A corpus' settings from plain values.

    Raises:
        InputError: as for :func:`load`.
    """
    return validate({"name": "corpus", "question": "-", "corpus": values}, "the corpus' settings").corpus


def _override(values: dict[str, Any], item: str) -> None:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise InputError("An override cannot be read.", got=item, expected="section.key=value", do="for example training.epochs=1")
    put(values, key.strip(), _yaml(value, f"override {key.strip()}"))


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one of a config's plain values; a section that is not there, or null, is made.

    Raises:
        InputError: if the key goes through a value that is no section.
    """
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            do = "for example training.epochs=1"
            raise InputError("An override names a value as if it were a section.", got=key, expected="section.key=value", do=do)
    values[last] = value


def override(key: str, value: Any) -> str:
    """The ``section.key=value`` text under which a file's value is replaced by this one.

    >>> override("optim.lr", 1e-5)
    'optim.lr=1.0e-05'
    """
    text = yaml.dump(value, Dumper=_LineDumper, default_flow_style=True, allow_unicode=True, width=math.inf)
    return f"{key}={text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"


class _LineDumper(yaml.SafeDumper):
    """SafeDumper that keeps to one line: it escapes what it would fold."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_LineDumper.add_representer(str, _LineDumper.represent_str)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted name, in their order: what :func:`put` takes apart.

    >>> dict(leaves({"optim": {"lr": 1e-5}, "seed": 1}))
    {'optim.lr': 1e-05, 'seed': 1}
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(text: str, source: str) -> dict[str, Any]:
    values = _yaml(text, source)
    if not isinstance(values, dict):
        got = "nothing" if values is None else f"a {type(values).__name__}"
        do = "start from configs/quickstart.yaml"
        raise InputError(f"{source} does not hold a mapping.", got=got, expected="key: value lines", do=do)
    return values


def _yaml(text: str, source: str) -> Any:
    try:
        return copy.deepcopy(_loaded(text))
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # the last two: a date like 2001-99-99, and deep nesting
        expected = "plain YAML: no tags, no anchors, each key once"
        do = "mend the place named above"
        raise InputError(f"{source} is not YAML that can be used.", got=str(e), expected=expected, do=do) from None


@lru_cache(maxsize=64)
def _loaded(text: str) -> Any:
    """A page asks for the same run's config again and again."""
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader, and stricter


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


def _where(err: Any) -> str:
    return ".".join(str(part) for part in err["loc"])


def _explain(err: Any, kind: type[Section]) -> str:
    """One problem as ``got ..., expected ...; what to do``."""
    got, what = err.get("input"), err["type"]
    if what in {"extra_forbidden", "invalid_key"}:
        key = str(err["loc"][-1])
        return f"got the unknown key {key!r}, expected a known one; {did_you_mean(key, _fields(kind, err['loc'][:-1]))}"
    if what == "missing":
        return f"got nothing, expected a value; add a line {err['loc'][-1]}: ..."
    if what == "value_error":
        return str(err["ctx"]["error"])
    expected = err["msg"].removeprefix("Input should be ").replace("String should ", "text to ")
    if what == "model_type":
        expected = f"a section with any of {', '.join(_fields(kind, err['loc']))}"
    return f"got {repr(got)[:80]} ({type(got).__name__}), expected {expected}{_remedy(what, got)}"


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


def _fields(kind: type[Section], loc: tuple[Any, ...]) -> list[str]:
    model: Any = kind
    for part in loc:
        if isinstance(part, int):  # of a list, whose items are sections
            continue
        model = model.model_fields[part].annotation
        model = next((kind for kind in get_args(model) if kind is not type(None)), model)  # a section that may be left out
    return list(model.model_fields)
