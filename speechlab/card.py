"""A model card from a run, in the hub's Markdown format, and the folder that goes with it.

The header is huggingface_hub's own :class:`ModelCardData`, so the hub reads it as it reads others. What the card says is what the run's
files say; what they do not say is said to be unknown, never guessed. Texts of a run are untrusted: in the header they are one line of
quoted YAML, in the body neither Markdown nor HTML.

Not covered: pushing to a hub; cards of models that no run of the lab has made; sharded weights.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from speechlab import checkpoints, corpora, evaluation, results, versions
from speechlab.checkpoints import Checkpoint
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.evaluation import Evaluation
from speechlab.models.weights import HUB_ID, KNOWN
from speechlab.runs import Run, ended, write_atomic
from speechlab.text import shown
from speechlab.units import clock

PUBLISHED = ("model.safetensors", "*.json", "*.txt", "tokenizer.model")  # of a checkpoint: all that loading needs; no pickle, no code
PRIVATE = ("state.json", "files.json")
TASK = "automatic-speech-recognition"
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Model:
    """What a run made: its best checkpoint, and what was measured of these weights.

    Attributes:
        run: The run.
        checkpoint: The best one, undamaged.
        table: The rows of :func:`speechlab.results.summary` of these weights, each condition once.
        before: The same of what training began with.
        normaliser: Behind the rates; empty if nothing was measured.
    """

    run: Run
    checkpoint: Checkpoint
    table: pd.DataFrame = field(repr=False)
    before: pd.DataFrame = field(repr=False)
    normaliser: str = ""


def model(run: Run) -> Model:
    """What a run made.

    Raises:
        InputError: if it is a pretraining, has no validated checkpoint, or the best one is damaged.
    """
    checkpoints.need_text(run)
    best = checkpoints.need_chosen(run)
    known = evaluation.load(run.path / "evaluations")
    own = [e for e in known if e.weights_sha256 == best.digest]  # those of earlier checkpoints speak of other weights
    start = [e for e in known if e.system == "pretrained"]
    return Model(run, best, _table(own, run.config), _table(start, run.config), own[0].normaliser if own else "")


def beside(evaluations: Path) -> str:
    """The card of the run that a folder of evaluations lies in; where there is none, a sentence that says why."""
    if not (evaluations.parent / "config.yaml").is_file():
        return "There is a model card only of what a run of the lab has made."
    run = Run(evaluations.parent)
    if checkpoints.chosen(run) is None:
        return "There is no model card: the run has no validated checkpoint yet."
    return card(model(run))


def _table(evaluations: list[Evaluation], experiment: Experiment) -> pd.DataFrame:
    """Each condition once, in the usual context, clean speech first, then by name."""
    if not evaluations:
        return pd.DataFrame()
    ordered = sorted(results.usual_first(evaluations), key=lambda e: e.condition != "clean")
    return results.usual(results.summary(ordered, experiment.evaluation, experiment.seed))


def export(run: Run, folder: Path) -> Path:
    """Write a folder that transformers' ``from_pretrained`` loads where it knows the architecture, with the card as README.md.

    Args:
        run: Its best checkpoint is copied, weights as safetensors only.
        folder: New, or empty.

    Returns:
        The folder.

    Raises:
        InputError: if the folder cannot be written or holds something, or as for :func:`model`.
    """
    made = model(run)
    _copy(published(made.checkpoint.path), folder)
    write_atomic(folder / "README.md", card(made).encode())
    return folder


def export_registered(name: str, folder: Path, uri: str | None = None) -> Path:
    """Write the folder of a registered model, with the card that it was registered with.

    Args:
        name: As for :func:`speechlab.versions.folder`.
        folder: New, or empty.
        uri: Tracking URI of the registry; None is SQLite beside the runs.

    Returns:
        The folder.

    Raises:
        InputError: if the folder cannot be written or holds something, or as for :func:`speechlab.versions.folder`.
    """
    held = versions.folder(name, uri)
    _copy([*published(held), *held.glob("README.md")], folder)
    return folder


def _copy(files: Iterable[Path], folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("The folder to export to is not empty.", got=str(folder), expected="a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copyfile(path, folder / path.name)
    except OSError as e:
        raise InputError("The folder cannot be written.", got=str(e), expected="a new folder and room for the weights") from None


def published(folder: Path) -> list[Path]:
    """The files of a checkpoint that others need."""
    return sorted(path for pattern in PUBLISHED for path in folder.glob(pattern) if path.name not in PRIVATE)


def card(made: Model, name: str = "") -> str:
    """The card.

    Args:
        made: From :func:`model`.
        name: What the model is called; empty is the run's id.
    """
    title = name or made.run.id
    sections = {"Results": _results(made), "Data": _data(made), "Intended use and limits": _use(made)}
    sections |= {"How to use": _how(made), "Training and its cost": _cost(made), "Provenance": _provenance(made)}
    body = "\n\n".join(f"## {head}\n\n{text}" for head, text in sections.items())
    return f"---\n{_header(made, title)}\n---\n\n# {plain(title)}\n\n{_first(made)}\n\n{body}\n"


# --- the header ------------------------------------------------------------------------------------------------


def _header(made: Model, title: str) -> str:
    experiment, table = made.run.config, made.table
    languages, base = _languages(experiment), _base(experiment)
    corpus = {"dataset_type": _line(experiment.corpus.name), "dataset_config": ",".join(languages), "dataset_split": "test"}
    data = ModelCardData(
        language=languages if len(languages) > 1 else languages[0],
        license="other",  # what follows from the licences of weights and recordings is the owner's to say
        license_name="see-section-data",
        library_name="transformers" if _in_transformers(experiment) else None,
        pipeline_tag=TASK,
        base_model=base or None,
        datasets=[corpus["dataset_type"]]
        if experiment.corpus.name in corpora.KNOWN and experiment.corpus.name not in ("own", "shards")
        else None,
        metrics=["wer", "cer"],
        tags=["speech-recognition", experiment.model.family, "speechlab"],
        model_name=_line(title),
        eval_results=[
            EvalResult(
                TASK,
                metric_type=kind,
                metric_value=round(100 * row[kind], 2),
                metric_name=f"{kind.upper()} %, {row['condition']}",
                dataset_name=f"{corpus['dataset_type']}, {row['clips']} test clips",
                **corpus,
            )
            for row in table.to_dict("records")
            if row["words"]
            for kind in ("wer", "cer")
        ]
        or None,
    )
    return str(data.to_yaml())


def _languages(experiment: Experiment) -> list[str]:
    return [_line(language) for language in experiment.corpus.language.split(",")]


def _base(experiment: Experiment) -> str:
    """The hub's id of what training began with; empty for a path, which means nothing elsewhere, and for a model from scratch."""
    start = experiment.model.weights or ""
    known = KNOWN.get(experiment.model.family, {}).get(start)
    return known.hub if known else start if HUB_ID.fullmatch(start) else ""


def _in_transformers(experiment: Experiment) -> bool:
    return experiment.model.family in KNOWN


# --- the body --------------------------------------------------------------------------------------------------


def _first(made: Model) -> str:
    experiment = made.run.config
    begun = str(experiment.model.weights)
    from_where = f"the registered model {begun}" if versions.is_name(begun) else "weights from a folder"
    start = plain(_base(experiment) or from_where) if experiment.model.weights is not None else ""
    kind = f"{start}, trained further" if start else "trained from scratch"
    heard = plain(", ".join(_languages(experiment)))
    return f"Speech recognition ({experiment.model.family}; language: {heard}): {kind} on {plain(experiment.corpus.name)} with SpeechLab."


def _results(made: Model) -> str:
    table = made.table
    if table.empty:
        return "Nothing has been measured of these weights."
    before = {row["condition"]: row["wer"] for row in made.before.to_dict("records")}
    lines = ["| condition | what is heard | clips | WER % | 95 %, these speakers | 95 %, new speakers | CER % | before training, WER % |"]
    lines.append("|---|---|---:|---:|---|---|---:|---:|")
    for r in table.to_dict("records"):
        rates = [_percent(r["wer"]), _span(r["low"], r["high"]), _span(r["new_low"], r["new_high"]), _percent(r["cer"])]
        if not r["words"]:
            rates = [f"{r['invented']:.1f} invented words a minute", "–", "–", "–"]
        cells = [r["condition"], plain(r["about"]), str(r["clips"]), *rates, _percent(before.get(r["condition"], float("nan")))]
        lines.append(f"| {' | '.join(cells)} |")
    speakers = "; ".join(dict.fromkeys(plain(r) for r in table[table.words > 0].warning if r))
    notes = [
        f"WER and CER are of the whole test set, after the normaliser {plain(made.normaliser)}.",
        "The first interval resamples utterances: it speaks of the speakers of this test set, heard again. Only the second, which "
        "resamples speakers, speaks of people who were not in it." + (f" Of it: {speakers}." if speakers else ""),
    ]
    return "\n".join(lines) + "\n\n" + " ".join(notes)


def _data(made: Model) -> str:
    settings, record = made.run.config.corpus, made.run.provenance.get("data", {})
    lines = [f"Corpus: {plain(settings.name)} ({plain(', '.join(_languages(made.run.config)))})"]
    if about := next((e["corpus"] for e in made.run.events() if e["kind"] == "start" and isinstance(e.get("corpus"), dict)), None):
        parts = (f"{split} {n:,} clips ({clock(about['seconds'][split])})" for split, n in about["clips"].items())
        lines.append(plain("; ".join(parts)))
    lines.append(f"Licence of the recordings: {plain(record.get('licence') or UNKNOWN)}")
    lines.append(f"Attribution: {plain(record.get('attribution') or UNKNOWN)}")
    lines.append(f"Licence of the weights it began with: {plain(made.run.provenance.get('weights', {}).get('licence') or UNKNOWN)}")
    lines.append("Under which licence this model may be handed on follows from these two, and is for who does so to say.")
    return _list(lines)


def _use(made: Model) -> str:
    experiment, table = made.run.config, made.table
    lines = [
        f"Made for: speech (language: {plain(', '.join(_languages(experiment)))}) that is like the corpus above, in clips of up to 30 s. "
        f"The question it was trained for: {plain(experiment.question)}",
        "Measured on test clips of the same corpus only. Other speakers, accents, rooms, microphones and subjects are not measured; "
        "expect more errors there, and measure before you rely on it.",
        "Not made for: telling who speaks, decisions about people, or records that nobody checks.",
    ]
    if table.empty:
        return _list([*lines, "No error rate is known."])
    rated = table[table.words > 0]
    if len(rated):
        worst = max(rated.to_dict("records"), key=lambda r: r["wer"])
        lines.append(f"The worst of the conditions above is {worst['condition']}: a WER of {_percent(worst['wer'])} %.")
        heard = set(rated.kind)
        missing = [
            what for kind, what in (("noise", "noise"), ("room", "reverberation"), ("codec", "codecs and telephones")) if kind not in heard
        ]
        if missing:
            lines.append(f"Not measured under: {', '.join(missing)}.")
    silent = table[table.words == 0]
    if len(silent):
        lines += [
            f"Under {r['condition']}, where nothing is said, it writes {r['invented']:.1f} words a minute."
            for r in silent.to_dict("records")
        ]
    else:
        lines.append("What it writes where nothing is said has not been measured; models of this kind can invent words there.")
    return _list(lines)


def _how(made: Model) -> str:
    if not _in_transformers(made.run.config):
        return "The architecture is the lab's own: `speechlab evaluate FOLDER` decodes with it."
    return (
        "```python\nfrom transformers import pipeline\n\n"
        f'recognise = pipeline("{TASK}", model="FOLDER")\nprint(recognise("clip.wav")["text"])\n```'
    )


def _cost(made: Model) -> str:
    run, steps, events = made.run, made.run.steps(), made.run.events()
    start = next((e for e in reversed(events) if e["kind"] == "start"), {})
    machine = run.provenance.get("hardware", {})
    lines = [f"Best checkpoint: step {made.checkpoint.step}, validation WER {_percent(made.checkpoint.wer)} %; the run is {ended(events)}"]
    if len(steps):
        took, audio = clock(float(steps.step_seconds.sum())), clock(float(steps.audio_seconds.sum()))
        lines.append(f"Steps: {len(steps):,} in {took}, over {audio} of audio")
        lines.append(f"Validation: {clock(sum(e['seconds'] for e in events if e['kind'] == 'validation'))}")
        lines.append(f"Peak memory: {steps.memory_bytes.max() / 1e9:.1f} GB a worker")
    if start:
        workers = f"{start['workers']} worker{'' if start['workers'] == 1 else 's'}"
        lines.append(plain(f"On: {workers}, {start['device']}, {start.get('precision', UNKNOWN)}"))
    hardware = f"{machine.get('gpu') or machine.get('cpu')}, {machine.get('cores')} cores" if machine else UNKNOWN
    lines.append(plain(f"Machine: {hardware}"))
    lines.append("Energy and emissions were not measured.")
    return _list(lines)


def _provenance(made: Model) -> str:
    run, record = made.run, made.run.provenance
    code, versions = record.get("code", {}), record.get("dependencies", {})
    state = {True: ", with changes that were not committed", False: ""}.get(code.get("dirty"), "")
    rows = {
        "run": run.id,
        "configuration": f"signature {run.config.signature}",
        "code": f"{code.get('git_sha') or UNKNOWN}{state}",
        "data": f"manifest {record.get('data', {}).get('manifest_sha256') or UNKNOWN}",
        "weights at the start": f"{record.get('weights', {}).get('name') or 'none'}, {record.get('weights', {}).get('sha256') or UNKNOWN}",
        "weights": f"digest {made.checkpoint.digest}",
        "dependencies": f"lock {versions.get('lock_sha256') or UNKNOWN}; "
        + ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if name in versions),
        "seed": str(run.config.seed),
    }
    lines = ["| what | which |", "|---|---|", *(f"| {name} | {plain(value)} |" for name, value in rows.items())]
    return "\n".join(lines)


# --- text ------------------------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Untrusted text as one line of Markdown that stands for itself: neither markup nor HTML nor a link.

    Characters that Markdown reads get a backslash, those of HTML become entities, which every renderer shows as the character; so do
    the colon and the dot that would make a bare address a link.

    >>> plain("a|b *c* <i>")
    'a\\\\|b \\\\*c\\\\* &lt;i&gt;'
    """
    line = re.sub(r"[\\`*_{}\[\]#|~]", r"\\\g<0>", _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return re.sub(r"\bwww\.", "www&#46;", line.replace("://", "&#58;//"), flags=re.IGNORECASE)


def _line(text: object) -> str:
    return " ".join(shown(text).split())


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _percent(rate: float | None) -> str:
    return "–" if rate is None or rate != rate else f"{100 * rate:.2f}"


def _span(low: float, high: float) -> str:
    return "–" if low != low else f"{100 * low:.2f} to {100 * high:.2f}"
