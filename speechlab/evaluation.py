"""What a run's models do on the held-out clips: systems by condition by context, kept as tables.

Each evaluation is a Parquet table, one row an utterance, beside a JSON file that says what was measured.
Conditions are made from a seed of (experiment, condition, clip), so every system hears the same samples and
comparisons stay paired. Rates, intervals and differences derive from the tables at any later time.

Not covered yet: rooms, codecs, latency budgets, verdicts, other people's hypotheses.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.std import tqdm

from speechlab import audio, checkpoints, corpora, decoding, models, training, utterances
from speechlab.batches import Clips
from speechlab.comparison import Difference, compare
from speechlab.config import Experiment
from speechlab.errors import InputError, did_you_mean
from speechlab.runs import Run, find, write_atomic
from speechlab.scoring import Scores, score
from speechlab.text import normaliser

SYSTEMS = ("pretrained", "finetuned")
COUNTED = ["words", "hits", "substitutions", "deletions", "insertions", "alignment"]  # columns that the normaliser decides


@dataclass(frozen=True)
class Evaluation:
    """One system in one condition and context.

    Attributes:
        system: ``pretrained`` or ``finetuned``.
        condition: ``clean`` or ``noise-10db`` and the like.
        context: ``short`` or ``full``, as decoded.
        rtf: Seconds of front end and decoding per second of audio, after a warm-up.
        weights_sha256: Of the weights that were decoded with.
        normaliser: Identity of the normaliser behind ``wer`` and ``cer``.
        wer: Corpus word error rate, normalised, a fraction.
        cer: Corpus character error rate, normalised, a fraction.
        fallbacks: Clips decoded once more at 30 s, because their text did not end in short context.
        rows: One row an utterance: id, speaker, duration, reference and hypothesis as they are, ended, context, seconds; and of the
            normalised texts words, hits, substitutions, deletions, insertions and the alignment in words.
    """

    system: str
    condition: str
    context: str
    rtf: float
    weights_sha256: str
    normaliser: str
    wer: float
    cer: float
    fallbacks: int
    rows: pd.DataFrame = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """``system--condition--context``: the stem of its files."""
        return f"{self.system}--{self.condition}--{self.context}"

    @property
    def label(self) -> str:
        """For figures: ``finetuned, short context``."""
        return self.system + {"short": ", short context", "full": ", 30 s context"}.get(self.context, "")

    def scores(self, name: str) -> Scores:
        """The counts under a normaliser by name."""
        return score(list(self.rows.reference), list(self.rows.hypothesis), normaliser(name), list(self.rows.speaker))


def conditions(experiment: Experiment) -> tuple[str, ...]:
    """The conditions of an experiment: clean, and white noise at its SNR."""
    return ("clean", f"noise-{experiment.evaluation.snr:g}db")


def alteration(condition: str, seed: int) -> Callable[[str, Any], Any] | None:
    """What a condition does to a clip: (id, wave) to wave; None for clean.

    The noise is white, at the SNR over active speech, drawn from (seed, condition, clip id).
    """
    if condition == "clean":
        return None
    snr = float(condition.removeprefix("noise-").removesuffix("db"))

    def alter(clip: str, wave_N: Any) -> Any:
        return audio.add_noise(wave_N, snr, audio.clip_seed(seed, f"{condition}/{clip}"))

    return alter


def systems(run: Run, corpus: corpora.Corpus | None = None) -> dict[str, tuple[str, str]]:
    """The folder and the weights' digest of the pretrained model, if the run began with one, and of its best checkpoint.

    Args:
        run: The run.
        corpus: The one it was trained on, if it is at hand.

    Raises:
        InputError: if the best checkpoint is damaged.
    """
    experiment = run.config
    found = {}
    if experiment.model.weights is not None:  # a model from scratch knew nothing before
        start = training.begin(experiment, Clips.of(corpus or corpora.configured(experiment.corpus)))
        found["pretrained"] = (str(start.path), start.sha256)
    best = checkpoints.best(checkpoints.candidates(run.path / "checkpoints"))
    if best is not None:
        if reason := checkpoints.damage(best):
            raise InputError(
                f"The best checkpoint of run {run.id} is damaged.",
                got=reason,
                expected="the file that was written",
                do="train again, or evaluate another run",
            )
        found["finetuned" if found else "trained"] = (str(best.path), best.digest)
    return found


def evaluate(
    experiment: Experiment,
    cuts: list[Any],
    *,
    system: str,
    folder: str,
    weights_sha256: str,
    condition: str,
    context: str,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda clips: None,
) -> Evaluation:
    """Decode clips with a system and count its errors.

    Args:
        experiment: Normaliser, batch size and precision are used.
        cuts: lhotse cuts to decode.
        system: Name under which the result goes.
        folder: Of the weights.
        weights_sha256: Their digest.
        condition: One of :func:`conditions`.
        context: ``short`` or ``full``.
        device: Torch device.
        progress: Called with the number of clips done since the last call.
    """
    if condition not in conditions(experiment):
        raise InputError(f'Unknown condition "{condition}".', got=condition, do=did_you_mean(condition, conditions(experiment)))
    model = models.load(experiment.model.family, folder, experiment.corpus.language).to(device)
    how: dict[str, Any] = {
        "context": context,
        "batch_size": experiment.evaluation.batch_size,
        "precision": experiment.training.precision,
        "device": device,
        "alter": alteration(condition, experiment.seed),
    }
    for _ in decoding.decode(model, cuts[:4], **how):
        pass  # warm-up: the first batch pays for allocation and kernel selection
    rows = []
    for answers in decoding.decode(model, cuts, **how):
        rows += answers
        progress(len(answers))
    table = pd.DataFrame([asdict(r) for r in sorted(rows, key=lambda r: r.id)])
    named = normaliser(experiment.evaluation.normaliser)
    counts = score(list(table.reference), list(table.hypothesis), named, list(table.speaker))
    table[COUNTED] = counts.table()[COUNTED]
    return Evaluation(
        system=system,
        condition=condition,
        context=context,
        rtf=float(table.seconds.sum() / table.duration.sum()),
        weights_sha256=weights_sha256,
        normaliser=named.identity,
        wer=counts.wer,
        cer=counts.cer,
        fallbacks=int((table.context >= 30).sum()) if context == "short" else 0,
        rows=table,
    )


def evaluate_run(run: Run, *, progress: bool = True) -> list[Evaluation]:
    """Evaluate a run's systems on its test clips and keep the tables in the run.

    A pretrained Whisper is decoded at 30 s, as it was trained; the fine-tuned one in short context and, on
    clean speech, at 30 s too. Models that hear a clip and no more have no such choice. What the run holds already is
    not measured again.

    Raises:
        InputError: if the corpus is not the one that the run was trained on.
    """
    experiment = run.config
    device = decoding.resolve_device(experiment.cluster.device, torch.cuda.is_available())
    corpus = corpora.configured(experiment.corpus)
    trained_on = run.provenance.get("data", {}).get("manifest_sha256", corpus.manifest_sha256)
    if corpus.manifest_sha256 != trained_on:
        raise InputError(
            "The corpus is not the one this run was trained on.",
            got=f"manifest {corpus.manifest_sha256[:12]}",
            expected=f"manifest {trained_on[:12]}",
            do="restore the corpus; its splits may have moved",
        )
    cuts = list(corpus.cuts["test"])
    have = {e.name: e for e in load(run)}
    available = systems(run, corpus)
    contexts = models.family_class(experiment.model.family).contexts
    wanted = [
        (system, condition, context)
        for system in available
        for condition in conditions(experiment)
        for context in contexts
        # the pretrained model was made for 30 s; whether the fine-tuned one still works there, clean speech shows
        if (context == "full") == (system == "pretrained" and "full" in contexts) or (system != "pretrained" and condition == "clean")
    ]
    found = []
    total = len(cuts) * len(wanted)
    # tqdm.std: text that a terminal, a notebook and a papermill log all show; its widget is blank offline
    with tqdm(total=total, unit="clip", disable=not progress) as bar:
        for system, condition, context in wanted:
            bar.set_description(f"{system}, {condition}, {context} context")
            folder, sha256 = available[system]
            known = have.get(f"{system}--{condition}--{context}")
            if known is None or known.weights_sha256 != sha256 or len(known.rows) != len(cuts):
                named = {"system": system, "folder": folder, "weights_sha256": sha256}
                known = evaluate(experiment, cuts, **named, condition=condition, context=context, device=device, progress=bar.update)
                save(run, known)
            else:
                bar.total -= len(cuts)
            found.append(known)
    return found


def save(run: Run, evaluation: Evaluation) -> None:
    """Write an evaluation's table and what it says into the run, and its normalised texts as trn, for those who use sclite."""
    folder = run.path / "evaluations"
    write_atomic(folder / f"{evaluation.name}.parquet", evaluation.rows.to_parquet(index=False))
    scores = evaluation.scores(evaluation.normaliser.split()[0])
    for kind, texts in (("ref", scores.references), ("hyp", scores.hypotheses)):
        lines = utterances.trn(list(evaluation.rows.id), texts, scores.speakers)
        write_atomic(folder / f"{evaluation.name}.{kind}.trn", lines.encode())
    meta = {k: v for k, v in vars(evaluation).items() if k != "rows"}
    write_atomic(folder / f"{evaluation.name}.json", json.dumps(meta, indent=1).encode())


def load(run: Run) -> list[Evaluation]:
    """All evaluations of a run, by name."""
    found = []
    for path in sorted((run.path / "evaluations").glob("*.json")):
        found.append(Evaluation(**json.loads(path.read_text()), rows=pd.read_parquet(path.with_suffix(".parquet"))))
    return found


def kept(name: str) -> Path:
    """The table of one of a run's evaluations.

    Args:
        name: ``RUN`` for its trained system on clean speech, in short context where it has that; ``RUN:system--condition--context``
            for another.

    Raises:
        InputError: if there is no such run, or it holds no such evaluation; those that it holds are listed.
    """
    id_, _, wanted = name.partition(":")
    run = find(id_)
    names = sorted(path.stem for path in (run.path / "evaluations").glob("*.json"))
    if not wanted:
        trained = [n for n in names if not n.startswith("pretrained") and "--clean--" in n]
        wanted = next((n for n in trained if n.endswith("--short")), trained[0] if trained else "")
    if wanted not in names:
        raise InputError(
            f"Run {run.id} holds no such evaluation.",
            got=wanted or "nothing evaluated",
            expected=", ".join(names) or "an evaluation",
            do=did_you_mean(wanted, names) if names else f"speechlab evaluate {run.id}",
        )
    return run.path / "evaluations" / f"{wanted}.parquet"


def summary(evaluations: list[Evaluation], experiment: Experiment) -> pd.DataFrame:
    """One row an evaluation: rates raw and normalised, counts, interval, RTF.

    Returns:
        system, condition, context, label, clips, words, wer, low, high (fractions; 95 % over utterances:
        these speakers), cer, wer_raw, cer_raw, substitutions, deletions, insertions, fallbacks, rtf, warning.
    """
    rows = []
    for e in evaluations:
        normal, raw = e.scores(experiment.evaluation.normaliser), e.scores("raw")
        interval = normal.interval(resamples=experiment.evaluation.resamples, seed=experiment.seed)
        speakers = normal.interval(resamples=experiment.evaluation.resamples, seed=experiment.seed, by="speaker")
        rows.append(
            {
                "system": e.system,
                "condition": e.condition,
                "context": e.context,
                "label": e.label,
                "clips": len(e.rows),
                "words": normal.words,
                "wer": normal.wer,
                "low": interval.low,
                "high": interval.high,
                "cer": normal.cer,
                "wer_raw": raw.wer,
                "cer_raw": raw.cer,
                "substitutions": normal.substitutions,
                "deletions": normal.deletions,
                "insertions": normal.insertions,
                "fallbacks": e.fallbacks,
                "rtf": e.rtf,
                "warning": speakers.warning,
            }
        )
    return pd.DataFrame(rows)


def differences(evaluations: list[Evaluation], experiment: Experiment) -> pd.DataFrame:
    """Fine-tuned minus pretrained on the same clips, by condition and context, in points of WER; no rows without both.

    Returns:
        condition, context, points, low, high (95 %, paired, these speakers), p, p_by, warning.
    """
    name = experiment.evaluation.normaliser
    before = {e.condition: e.scores(name) for e in evaluations if e.system == "pretrained"}
    rows = []
    for e in evaluations:
        if e.system == "pretrained" or e.condition not in before:
            continue
        d: Difference = compare(before[e.condition], e.scores(name), experiment.evaluation.resamples, experiment.seed)
        rows.append(
            {
                "condition": e.condition,
                "context": e.context,
                "points": d.points,
                "low": d.low,
                "high": d.high,
                "p": d.p,
                "p_by": d.p_by,
                "warning": d.p_warning,
            }
        )
    return pd.DataFrame(rows, columns=["condition", "context", "points", "low", "high", "p", "p_by", "warning"])


def side_by_side(evaluations: list[Evaluation], name: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The clean clips that a run's systems got wrong, worst first.

    Args:
        evaluations: Of a run.
        name: Of the normaliser.

    Returns:
        id, duration, reference, after (normalised texts) and errors_after, and before and errors_before where there is a
        pretrained system; and what the text columns are called.
    """
    clean = [e for e in evaluations if e.condition == "clean"]
    before = next((e for e in clean if e.system == "pretrained"), None)
    after = next(e for e in clean if e.system != "pretrained" or len(clean) == 1)
    b = after.scores(name)
    columns = {"id": after.rows.id, "duration": after.rows.duration, "reference": b.references, "after": b.hypotheses}
    columns |= {"errors_before": 0 * b.errors_U, "errors_after": b.errors_U}
    named = {"after": after.label}
    if before is not None:
        a = before.scores(name)
        columns |= {"before": a.hypotheses, "errors_before": a.errors_U}
        named = {"before": before.label, "after": after.label}
    table = pd.DataFrame(columns)
    wrong = table[(table.errors_before > 0) | (table.errors_after > 0)]
    return wrong.sort_values(["errors_after", "errors_before", "id"], ascending=[False, False, True]).reset_index(drop=True), named
