"""What can be evaluated, by name: a run, a registered model, weights by path, short name or hub id, or somebody's hypotheses.

Notable: one function behind the command line and the notebooks, :func:`measure`; a run's tables stay in the run, those of
models that no run of the lab has made in a folder of their own. A file of hypotheses becomes an evaluation like the others, on
clean speech, without times.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from speechlab import config as configs
from speechlab import corpora, decoding, evaluation, models, provenance, runs, utterances, versions
from speechlab.config import Experiment
from speechlab.decoding import Decoded
from speechlab.errors import InputError, did_you_mean
from speechlab.evaluation import Evaluation, System
from speechlab.models import weights


@dataclass(frozen=True)
class Measured:
    """Evaluations, and what they were made with.

    Attributes:
        name: Of the run, or of the folder.
        folder: That holds the tables.
        evaluations: By system, in the order of the names, then condition; files last.
        experiment: The config behind them.
        corpus: Whose test clips were decoded.
    """

    name: str
    folder: Path
    evaluations: list[Evaluation] = field(repr=False)
    experiment: Experiment = field(repr=False)
    corpus: corpora.Corpus = field(repr=False)


def measure(
    names: Sequence[str],
    config: str | Path = "configs/quickstart.yaml",
    overrides: Sequence[str] = (),
    conditions: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    missing: str = "refuse",
    extra: str = "refuse",
    usual: bool = False,
    progress: bool = True,
) -> Measured:
    """Evaluate systems by their names; what was measured before is not measured again.

    Args:
        names: As for :func:`resolve`, or files of hypotheses as for :func:`answered`. One run alone is evaluated before and after
            its training, on its own corpus.
        config: Says on which corpus and how several, or any that is no run, are evaluated.
        overrides: ``section.key=value`` texts for it.
        conditions: Names; none are the config's.
        out: Folder of the tables; none is a new one under ``reports/evaluations``.
        workers: Processes that decode, in place of ``evaluation.workers``; None is the config's.
        missing: Of test clips that a file has no answer for, as for :func:`speechlab.utterances.join`.
        extra: Of answers for what is no test clip, likewise.
        usual: Whether several are decoded in their usual context only, as for :func:`speechlab.evaluation.evaluate_all`.
        progress: Whether to show progress bars.

    Raises:
        InputError: if a name is not known, there are overrides for a run alone, a file does not fit the test clips, or as for
            :func:`speechlab.evaluation.evaluate_all`.
    """
    if len(names) == 1 and (run := _run(names[0])):
        if overrides:
            raise InputError("A run alone is evaluated by its own config.", got=", ".join(overrides), do="--conditions, --workers")
        corpus = corpora.configured(run.config.corpus)
        done = evaluation.evaluate_run(run, conditions, workers=workers, progress=progress)
        return Measured(run.id, run.path / "evaluations", done, run.config, corpus)
    experiment = configs.load(config, [*overrides, *([] if workers is None else [f"evaluation.workers={workers}"])])
    files = [Path(name) for name in names if Path(name).is_file()]
    found = [resolve(name, experiment.corpus.language, experiment.tracking.uri) for name in names if not Path(name).is_file()]
    called = [*(system.name for system in found), *(_plain(file.stem) for file in files)]
    if twice := [name for name in called if called.count(name) > 1]:
        raise InputError("A system is named twice.", got=twice[0], expected="each once")
    corpus = corpora.configured(experiment.corpus)
    given = [answered(file, corpus, experiment, missing, extra) for file in files]
    folder = Path(out) if out else configs.reports() / "evaluations" / time.strftime("%Y%m%d-%H%M%S")
    done = evaluation.evaluate_all(found, corpus, experiment, folder, conditions, usual=usual, progress=progress) if found else []
    for one in given:
        evaluation.save(folder, one)
    done += given
    return Measured(folder.name, folder, done, experiment, corpus)


def answered(file: Path, corpus: corpora.Corpus, experiment: Experiment, missing: str = "refuse", extra: str = "refuse") -> Evaluation:
    """Somebody's hypotheses of a corpus's test clips, as an evaluation on clean speech.

    Args:
        file: As :func:`speechlab.utterances.read` takes it; ids are those of the clips, or of the lab's trn files.
        corpus: Whose test clips were recognised.
        experiment: Its normaliser and seed are used.
        missing: As for :func:`speechlab.utterances.join`; a clip that counts as deleted is noted.
        extra: Likewise.

    Raises:
        InputError: if the file cannot be read or does not fit the clips.
    """
    cuts = {cut.id: cut for cut in corpus.cuts["test"]}
    references = {id: cut.supervisions[0].text for id, cut in cuts.items()}
    answers = utterances.read(file, "hypothesis")
    named = {utterances.trn_id(id, cut.supervisions[0].speaker): id for id, cut in cuts.items()}
    answers = replace(answers, texts={named.get(id, id): text for id, text in answers.texts.items()})
    joined = utterances.join(utterances.Texts(f"the test clips of {corpus.name}", references, None), answers, missing, extra)
    texts = zip(joined.ids, joined.references, joined.hypotheses, strict=True)
    return evaluation.tabled(
        [Decoded(id, cuts[id].supervisions[0].speaker, cuts[id].duration, said, heard) for id, said, heard in texts],
        experiment.evaluation.normaliser,
        system=_plain(file.stem),
        condition="clean",
        context="",
        weights_sha256="",
        heard_sha256=evaluation.prepare("clean", corpus, experiment).sha256,
        how={"file": hashlib.sha256(file.read_bytes()).hexdigest()},
        memory_bytes=math.nan,
        notes=dict.fromkeys(joined.missing, "no answer") if missing == "deleted" else {},
    )


def resolve(name: str, language: str, uri: str | None = None) -> System:
    """A system by its name.

    Args:
        name: ``RUN`` (its best checkpoint) or ``RUN:pretrained``; ``models:/name@alias`` or ``models:/name/version`` of the registry;
            or weights as in ``model.weights`` of a config, after ``family:`` where neither name nor folder tells it.
        language: Of the speech.
        uri: Tracking URI of the registry; None is SQLite beside the runs.

    Raises:
        InputError: if nothing of that name is known or can be had, or it cannot be used.
    """
    if versions.is_name(name):
        told = _family(name, versions.folder(name, uri))
        found = weights.resolve(told, name, registry=uri)
        return System(_plain(name.removeprefix(versions.SCHEME)), told, str(found.path), found.sha256, language, name)
    place, _, which = name.partition(":")
    if run := _run(place):
        available = evaluation.systems(run)
        which = which or next(reversed(available), "")
        if which not in available:
            raise InputError(f"Run {run.id} has no such system.", got=which or "none yet", do=did_you_mean(which, available))
        return replace(available[which], name=_plain(run.id if which != "pretrained" else f"{run.id}.pretrained"), language=language)
    family, _, wanted = name.partition(":") if place in models.FAMILIES else (None, "", name)
    kind = family or _family(wanted, Path(wanted))
    try:
        found = weights.resolve(kind, wanted)
    except InputError as e:
        if family:
            raise
        try:
            runs.find(place)
        except InputError as no_run:  # as likely as weights it is a run's name with a slip
            raise InputError(f"{e}\n{no_run}") from None
        raise
    return System(_plain(wanted), kind, str(found.path), found.sha256, language, f"{found.name}, {found.source}")


def ready(name: str, language: str, device: str = "auto", precision: str = "", uri: str | None = None) -> tuple[Any, dict[str, str]]:
    """A model by its name, loaded, and how it is to be asked.

    Args:
        name: As for :func:`resolve`.
        language: Of the speech.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``; empty is bf16 where the device multiplies it itself, fp32 elsewhere.
        uri: As for :func:`resolve`.

    Returns:
        The model, ready to transcribe, and its ``device`` and ``precision``.

    Raises:
        InputError: as for :func:`resolve`, or if there is no such device.
    """
    import torch

    system = resolve(name, language, uri)
    device = decoding.resolve_device(device, torch.cuda.is_available())
    precision = precision or ("bf16" if device == "cuda" or provenance.bf16_native() else "fp32")
    return system.load(None, device, ()), {"device": device, "precision": precision}


def _run(name: str) -> runs.Run | None:
    """The run of that name, if there is one."""
    known = name == "latest" or (configs.reports() / name / "config.yaml").is_file() or (Path(name) / "config.yaml").is_file()
    return runs.find(name) if known else None


def _family(name: str, folder: Path) -> str:
    """What the folder says, else what the name tells, else Whisper."""
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    return kind if kind in models.FAMILIES else next((family for family in models.FAMILIES if family in name), "whisper")


def _plain(name: str) -> str:
    """A name that is safe in a file's."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", ".", name.strip("/"))).strip(".-")[-80:] or "system"
