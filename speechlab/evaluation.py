"""What models do on held-out clips: systems by condition by context, measured once and kept as tables.

Each evaluation is a Parquet table, one row an utterance, beside a JSON file that says what was measured: weights, what was
heard, how it was decoded, normaliser. They lie in a run's ``evaluations``, or in a folder of their own for systems that no run
of the lab has made. Rates, intervals and differences derive from the tables at any later time: :mod:`speechlab.results`.

A clip that cannot be read is no row: it is named, with the reason, beside the table.

Sets too large for one process are decoded by workers (:mod:`speechlab.infer`). Not covered: tables too large for memory, which
takes some kB a clip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.std import tqdm

from speechlab import checkpoints, conditions, corpora, decoding, infer, latency, memory, models, training, utterances, versions
from speechlab.batches import Clips
from speechlab.conditions import Heard
from speechlab.config import EvaluationConfig, Experiment
from speechlab.errors import InputError, did_you_mean
from speechlab.infer import System as System
from speechlab.runs import Run, find, write_atomic
from speechlab.scoring import Scores, score
from speechlab.text import normaliser

COUNTED = ["words", "hits", "substitutions", "deletions", "insertions", "alignment"]  # columns that the normaliser decides


@dataclass(frozen=True)
class Evaluation:
    """One system in one condition and context.

    Attributes:
        system: Name of the system.
        condition: Name of the condition, see :mod:`speechlab.conditions`.
        context: As decoded: ``silence``, ``short``, ``full`` or ``clip``; empty for hypotheses from elsewhere.
        weights_sha256: Of the weights that were decoded with; empty for hypotheses from elsewhere.
        heard_sha256: Of the clips as they were heard: :attr:`speechlab.conditions.Heard.sha256`.
        how: Device and precision, and the search where one was made.
        normaliser: Identity of the normaliser behind ``wer`` and ``cer``.
        wer: Corpus word error rate, normalised, a fraction.
        cer: Corpus character error rate, normalised, a fraction.
        rtf: Seconds from samples to text per second of audio, after a warm-up; :attr:`rtfx` is its inverse.
        memory_bytes: Most that decoding took, weights included.
        fallbacks: Clips decoded once more at 30 s, because their text did not end before.
        broken: Ids of clips that could not be read, with the reasons.
        notes: Ids of clips that are not what the condition says, with the reasons.
        rows: One row an utterance: id, speaker, duration, reference and hypothesis as they are, ended, context, seconds, confidences (of
            each word), latency (seconds where decoded alone, else missing); and of the normalised texts words, hits, substitutions,
            deletions, insertions and the alignment in words.
    """

    system: str
    condition: str
    context: str
    weights_sha256: str
    heard_sha256: str
    how: dict[str, str]
    normaliser: str
    wer: float
    cer: float
    rtf: float
    memory_bytes: float
    fallbacks: int
    broken: dict[str, str]
    notes: dict[str, str]
    rows: pd.DataFrame = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """``system--condition--context``: the stem of its files."""
        return f"{self.system}--{self.condition}--{self.context}"

    @property
    def label(self) -> str:
        """For figures: ``finetuned, short context``."""
        return ", ".join(filter(None, (self.system, models.CONTEXTS.get(self.context))))

    @property
    def rtfx(self) -> float:
        """Seconds of audio per second of decoding, as the Open ASR leaderboard counts it: total over total."""
        return 1 / self.rtf if self.rtf else float("nan")

    @property
    def timed(self) -> latency.Latency | None:
        """Latency at batch 1, where it was measured."""
        known = self.rows.latency.notna()
        return latency.measure(self.rows.latency[known].to_numpy(), self.rows.duration[known].to_numpy()) if known.any() else None

    def scores(self, name: str) -> Scores:
        """The counts under a normaliser by name."""
        return score(list(self.rows.reference), list(self.rows.hypothesis), normaliser(name), list(self.rows.speaker))


def systems(run: Run, corpus: corpora.Corpus | None = None) -> dict[str, System]:
    """The pretrained model, if the run began with one, and its best checkpoint, if it has one.

    Args:
        run: The run.
        corpus: The one it was trained on, if it is at hand.

    Raises:
        InputError: if the run is a pretraining, or the best checkpoint is damaged.
    """
    checkpoints.need_text(run)
    experiment = run.config
    family, language = experiment.model.family, experiment.corpus.language
    found = {}
    if experiment.model.weights is not None:  # a model from scratch knew nothing before
        start = training.begin(experiment, Clips.of(corpus or corpora.configured(experiment.corpus)))
        found["pretrained"] = System("pretrained", family, str(start.path), start.sha256, language, f"{start.name}, {start.source}")
    best = checkpoints.chosen(run)
    if best is not None:
        name = "finetuned" if found else "trained"
        found[name] = System(name, family, str(best.path), best.digest, language, f"{run.id}, step {best.step}")
    return found


def evaluate(
    system: System,
    heard: Heard,
    settings: EvaluationConfig,
    *,
    context: str | None = None,
    precision: str = "bf16",
    device: str = "cpu",
    latencies: bool = False,
    texts: Sequence[str] = (),
    progress: Callable[[int], None] = lambda clips: None,
    workers: infer.Workers | None = None,
) -> Evaluation:
    """Decode clips with a system and count its errors.

    Args:
        system: What decodes.
        heard: Clips under a condition.
        settings: Normaliser, search and size of a batch are used.
        context: One of the system's; None is the usual one.
        precision: As for :func:`speechlab.decoding.decode`.
        device: Torch device.
        latencies: Decode every clip alone too, and keep how long it took.
        texts: Training transcripts, where the settings' search needs them.
        progress: Called with the number of clips done since the last call.
        workers: Decode in place of this process, which then only times latencies; None decodes here.

    Raises:
        InputError: if the system has no such context, or not one clip can be read.
    """
    if context is not None and context not in system.contexts:
        raise InputError(f"{system.family} has no such context.", got=context, do=did_you_mean(context, system.contexts))
    context = context or system.contexts[0]
    how: dict[str, Any] = {"context": context, "precision": precision, "device": device}
    answers: list[decoding.Decoded] = []
    alone: dict[str, float] = {}
    took = 0.0
    if workers is not None:
        name = f"{system.name}--{heard.condition.name}--{context}"
        for block in workers.decode(system, heard.cuts, name, heard.sha256, settings, texts=texts, **how):
            answers += block.answers
            took = max(took, block.memory_bytes)
            progress(len(block.answers))
    if workers is None or latencies:
        memory.trim()
        before = memory.used(device)
        memory.forget_peak(device)
        model = system.load(settings.search, device, texts)
        for _ in decoding.decode(model, heard.cuts[:4], seconds=settings.batch_seconds, **how):
            pass  # warm-up: the first batch pays for allocation, for the choice of kernels, and for what is made once
        for part in decoding.decode(model, heard.cuts, seconds=settings.batch_seconds, **how) if workers is None else ():
            answers += part
            progress(len(part))
        for (one,) in decoding.decode(model, heard.cuts, seconds=0, **how) if latencies else ():
            alone[one.id] = one.seconds
            progress(1)
        took = max(took, memory.peak(device) - before)
    return tabled(
        answers,
        settings.normaliser,
        system=system.name,
        condition=heard.condition.name,
        context=context,
        weights_sha256=system.sha256,
        heard_sha256=heard.sha256,
        how=system.how(settings.search, precision, device, texts),
        memory_bytes=took,
        notes=heard.notes,
        alone=alone,
    )


def tabled(answers: Sequence[decoding.Decoded], name: str, *, alone: dict[str, float] | None = None, **about: Any) -> Evaluation:
    """An evaluation from answers.

    Args:
        answers: In any order.
        name: Of the normaliser.
        alone: Seconds by id, of clips decoded one by one.
        about: The other fields of an :class:`Evaluation`.

    Raises:
        InputError: if there is no answer.
    """
    answered = sorted((a for a in answers if not a.problem), key=lambda a: a.id)
    broken = {a.id: a.problem for a in answers if a.problem}
    if not answered:
        raise InputError("Not one clip could be decoded.", got=next(iter(broken.values()), "0 clips"), expected="clips that can be read")
    table = pd.DataFrame([asdict(a) for a in answered]).drop(columns="problem")
    table["confidences"] = table.confidences.map(list)
    table["latency"] = table.id.map(alone or {}).astype(float)
    rules = normaliser(name)
    counts = score(list(table.reference), list(table.hypothesis), rules, list(table.speaker))
    table[COUNTED] = counts.table()[COUNTED]
    return Evaluation(
        normaliser=rules.identity,
        wer=counts.wer,
        cer=counts.cer,
        rtf=float(table.seconds.sum() / table.duration.sum()),
        fallbacks=int((table.context >= 30).sum()) if about["context"] in ("silence", "short") else 0,
        broken=broken,
        rows=table,
        **about,
    )


def evaluate_run(run: Run, names: Sequence[str] = (), *, workers: int | None = None, progress: bool = True) -> list[Evaluation]:
    """Evaluate a run's systems on its test clips and keep the tables in the run.

    Args:
        run: Its config says under which conditions.
        names: Of other conditions.
        workers: In place of ``evaluation.workers``, which is frozen with the run; None is the config's.
        progress: Whether to show a progress bar.

    Raises:
        InputError: if the corpus is not the one that the run was trained on.
    """
    corpus = corpora.configured(run.config.corpus)
    trained_on = run.provenance.get("data", {}).get("manifest_sha256", corpus.manifest_sha256)
    if corpus.manifest_sha256 != trained_on:
        raise InputError(
            "The corpus is not the one this run was trained on.",
            got=f"manifest {corpus.manifest_sha256[:12]}",
            expected=f"manifest {trained_on[:12]}",
            do="restore the corpus; its splits may have moved",
        )
    settings = run.config.evaluation if workers is None else run.config.evaluation.model_copy(update={"workers": workers})
    experiment = run.config.model_copy(update={"evaluation": settings})
    return evaluate_all(list(systems(run, corpus).values()), corpus, experiment, run.path / "evaluations", names, progress=progress)


def evaluate_all(
    available: Sequence[System],
    corpus: corpora.Corpus,
    experiment: Experiment,
    folder: Path,
    names: Sequence[str] = (),
    *,
    usual: bool = False,
    progress: bool = True,
) -> list[Evaluation]:
    """Evaluate systems on the test clips of a corpus under several conditions; what the folder holds is not measured again.

    Every condition is decoded in the systems' usual context; clean speech also at 30 s, where that is another, and in the
    short context for models that were trained in it.

    Args:
        available: The systems.
        corpus: Its test split is decoded.
        experiment: Its evaluation, seed, precision, device and the cluster's address are used.
        folder: Where the tables are kept.
        names: Of conditions; none are the experiment's.
        usual: Whether to leave the other contexts of clean speech out.
        progress: Whether to show a progress bar.

    Returns:
        By system, then condition.

    Raises:
        InputError: if a condition is not known, or cannot be made of this corpus.
    """
    settings = experiment.evaluation
    device = infer.device(experiment)
    wanted = conditions.named(tuple(names) or settings.conditions, _noise(experiment))
    cuts = list(corpus.cuts["test"])
    texts = [cut.supervisions[0].text for cut in corpus.cuts["train"]] if settings.search else []
    heard = {c.name: prepare(c.name, corpus, experiment) for c in wanted}
    have = {e.name: e for e in load(folder)}
    todo = [
        (system, heard[c.name], context)
        for system in available
        for c in wanted
        for context in _contexts(system, c.kind == "clean" and not usual)
    ]
    found = []
    # tqdm.std: text that a terminal, a notebook and a papermill log all show; its widget is blank offline
    bar = tqdm(total=len(cuts) * len(todo), unit="clip", disable=not progress)
    with bar, infer.Workers(settings.workers, folder, experiment.cluster.address) as workers:
        for system, clips, context in todo:
            known = have.get(f"{system.name}--{clips.condition.name}--{context}")
            timed = settings.latency and clips.condition.kind == "clean" and context == system.contexts[0]
            want = (system.sha256, clips.sha256, system.how(settings.search, experiment.training.precision, device, texts))
            if known is None or (known.weights_sha256, known.heard_sha256, known.how) != want or (timed and known.timed is None):
                bar.set_description(f"{system.name}, {clips.condition.name}, {models.CONTEXTS.get(context, context)}")
                bar.total += len(cuts) * timed
                how: dict[str, Any] = {"context": context, "precision": experiment.training.precision, "device": device}
                how["workers"] = workers if settings.workers else None
                known = evaluate(system, clips, settings, latencies=timed, texts=texts, progress=bar.update, **how)
                save(folder, known)
                workers.forget(known.name)
            else:
                bar.total -= len(cuts)
            found.append(known)
        bar.refresh()
    return found


def prepare(condition: str, corpus: corpora.Corpus, experiment: Experiment) -> Heard:
    """A corpus's test clips under a condition, by the seed and the recordings of noise of an experiment.

    Raises:
        InputError: as for :func:`speechlab.conditions.prepare`.
    """
    return conditions.prepare(condition, list(corpus.cuts["test"]), experiment.seed, corpus=corpus, noise=_noise(experiment))


def _noise(experiment: Experiment) -> Path | None:
    return Path(experiment.evaluation.noise) if experiment.evaluation.noise else None


def _contexts(system: System, clean: bool) -> tuple[str, ...]:
    """Which are worth measuring: a pretrained model was not made for a short context."""
    trained = system.name in ("finetuned", "trained")
    return tuple(c for c in system.contexts if clean and (trained or c != "short")) if clean else system.contexts[:1]


def save(folder: Path, evaluation: Evaluation) -> None:
    """Write an evaluation's table and what it says, and its normalised texts as trn, for those who use sclite."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{evaluation.name}.parquet", evaluation.rows.to_parquet(index=False))
    scores = evaluation.scores(evaluation.normaliser.split()[0])
    for kind, texts in (("ref", scores.references), ("hyp", scores.hypotheses)):
        lines = utterances.trn(list(evaluation.rows.id), texts, scores.speakers)
        write_atomic(folder / f"{evaluation.name}.{kind}.trn", lines.encode())
    meta = {k: v for k, v in vars(evaluation).items() if k != "rows"}
    write_atomic(folder / f"{evaluation.name}.json", json.dumps(meta, indent=1, ensure_ascii=False).encode())


def load(folder: Path, wanted: str = "*--*--*") -> list[Evaluation]:
    """Evaluations of a folder whose names match, in their order; those of an older version of the lab are left out, and made anew."""
    found = []
    for path in sorted(folder.glob(f"{wanted}.json")):
        meta = json.loads(path.read_text("utf-8"))
        if set(meta) == set(Evaluation.__dataclass_fields__) - {"rows"}:
            found.append(Evaluation(**meta, rows=pd.read_parquet(path.with_suffix(".parquet"))))
    return found


def kept(name: str) -> Path:
    """The table of an evaluation.

    Args:
        name: ``RUN`` for its trained system on clean speech in its usual context; ``RUN:system--condition--context`` for another.
            Instead of a run, a folder of evaluations, or a registered model for what its run has measured of these weights.

    Raises:
        InputError: if there is no such run, or it holds no such evaluation; those that it holds are listed.
    """
    scheme = versions.SCHEME if versions.is_name(name) else ""
    place, _, wanted = name.removeprefix(scheme).partition(":")
    place = scheme + place
    folder = Path(place) if next(Path(place).glob("*--*--*.json"), None) else find(place).path / "evaluations"
    tables = sorted(folder.glob("*--*--*.json"))
    if scheme:  # its run may have a better checkpoint since, or the weights that it began with
        digest = versions.named(place).digest
        tables = [path for path in tables if json.loads(path.read_text("utf-8")).get("weights_sha256") == digest]
    names = [path.stem for path in tables]
    if not wanted:
        clean = [n for n in names if "--clean--" in n]
        trained = [n for n in clean if not n.startswith("pretrained")] or clean
        wanted = next((n for n in trained if n.endswith(("--silence", "--clip"))), trained[0] if trained else "")
    if wanted not in names:
        raise InputError(
            f"{place} holds no such evaluation.",
            got=wanted or "nothing evaluated",
            expected=", ".join(names) or "an evaluation",
            do=did_you_mean(wanted, names) if names else f"speechlab evaluate {folder.parent.name if scheme else place}",
        )
    return folder / f"{wanted}.parquet"
