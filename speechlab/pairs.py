"""Two systems, or two families of trainings, by name, brought to the same utterances.

A name is a run, one of its evaluations, a folder of evaluations, or anybody's file of hypotheses; several names separated by
commas are the trainings of a family, which differ in their seeds. Command line and notebook ask here.

Not covered: more than two systems at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab import audio, corpora, evaluation, text, utterances
from speechlab import strata as tables
from speechlab.comparison import Difference, Families, compare, families
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.scoring import Scores, score
from speechlab.utterances import Joined, Texts

# columns of strata.table that are numbers, what they are called, and their units
MEASURES = {
    "duration": ("duration", "s"),
    "rate": ("speaking rate", "words/s"),
    "snr": ("estimated SNR", "dB"),
    "level": ("level", "dBFS"),
}


@dataclass(frozen=True)
class Pair:
    """Two systems on the same utterances.

    Attributes:
        ids: Of the utterances (U), in the order of all scores.
        a: The system compared against: a score for each training.
        b: The system in question.
        names_a: As they were given.
        names_b: Likewise.
        joined: Each training's texts with what was missing or left out, a's before b's.
    """

    ids: tuple[str, ...] = field(repr=False)
    a: tuple[Scores, ...]
    b: tuple[Scores, ...]
    names_a: tuple[str, ...]
    names_b: tuple[str, ...]
    joined: tuple[Joined, ...] = field(repr=False)

    def difference(self, resamples: int = 1000, seed: int = 0) -> Difference | Families:
        """b minus a; of families where either has more than one training."""
        if len(self.a) == len(self.b) == 1:
            return compare(self.a[0], self.b[0], resamples, seed)
        return families(self.a, self.b, resamples, seed)


def pair(
    a: str, b: str, reference: str | Path | None = None, normaliser: str = "english", missing: str = "refuse", extra: str = "refuse"
) -> Pair:
    """Bring two systems to the same utterances.

    Args:
        a: The system in use: names separated by commas.
        b: The new one.
        reference: What was said, for files that do not hold it.
        normaliser: By name.
        missing: As for :func:`speechlab.utterances.join`.
        extra: Likewise.

    Raises:
        InputError: if a name is not known, a file cannot be read, or the systems were not given the same utterances.
    """
    given = utterances.read(reference, "reference") if reference else None
    sides = [tuple(name.strip() for name in side.split(",") if name.strip()) for side in (a, b)]
    if not all(sides):
        raise InputError("A system has no name.", got=f"{a!r} and {b!r}", expected="runs, evaluations or files")
    ids: tuple[str, ...] | None = None
    found: list[Joined] = []
    for name in (*sides[0], *sides[1]):
        joined = texts(name, given, missing, extra)
        if ids is not None and set(ids) != set(joined.ids):
            differ = sorted(set(ids) ^ set(joined.ids))
            raise InputError("The two systems were not given the same utterances.", got=utterances.some(differ), expected="the same ids")
        found.append(joined if ids is None else utterances.ordered(joined, ids))
        ids = found[0].ids
    rules = text.normaliser(normaliser)
    scores = [score(j.references, j.hypotheses, rules, j.speakers) for j in found]
    count = len(sides[0])
    return Pair(found[0].ids, tuple(scores[:count]), tuple(scores[count:]), sides[0], sides[1], tuple(found))


def texts(name: str, reference: Texts | None, missing: str = "refuse", extra: str = "refuse") -> Joined:
    """What a system recognised, beside what was said.

    Args:
        name: A file of hypotheses, or as for :func:`speechlab.evaluation.kept`.
        reference: What was said; None where the file holds it.
        missing: As for :func:`speechlab.utterances.join`.
        extra: Likewise.

    Raises:
        InputError: if it is not known, cannot be read, or does not say what was said.
    """
    path = Path(name) if Path(name).is_file() else evaluation.kept(name)
    if reference is None and path.suffix != ".parquet":
        raise InputError("A file of hypotheses says nothing of what was said.", got=name, expected="--reference FILE")
    return utterances.join(reference or utterances.read(path, "reference"), utterances.read(path, "hypothesis"), missing, extra)


def sounds(name: str) -> dict[str, Any]:
    """The clips that an evaluation of a run heard, as lhotse cuts by id; none of what is no run's, and so not at hand.

    Raises:
        InputError: if the run's corpus cannot be had.
    """
    if Path(name).is_file():
        return {}
    path = evaluation.kept(name)
    run = path.parent.parent
    if not (run / "config.yaml").is_file():
        return {}
    experiment = Run(run).config
    heard = next(e for e in evaluation.load(path.parent) if e.name == path.stem)
    clips = evaluation.prepare(heard.condition, corpora.configured(experiment.corpus), experiment)
    return {cut.id: cut for cut in clips.cuts}


def sound(clips: dict[str, Any], id_: str) -> bytes | None:
    """A clip as MP3, or None where it is not at hand."""
    return audio.encode_mp3(corpora.load_audio(clips[id_])) if id_ in clips else None


def strata(both: Pair, clips: dict[str, Any], path: str | Path | None = None) -> dict[str, pd.Series]:
    """Labels of the utterances by what they are strata of.

    Args:
        both: Their ids decide the order.
        clips: From :func:`sounds`: their columns, speakers, lengths, speaking rates, levels and SNRs, in bands.
        path: A table with id and stratum.

    Raises:
        InputError: if the table says nothing of an utterance.
    """
    found: dict[str, pd.Series] = {}
    if path:
        told = utterances.read(path, "stratum")
        if lost := [id_ for id_ in both.ids if id_ not in told.texts]:
            raise InputError(f"{len(lost)} utterances have no stratum.", got=utterances.some(lost), expected=f"each in {path}")
        found[Path(path).name] = pd.Series([told.texts[id_] for id_ in both.ids])
    if both.a[0].speakers:
        found["speaker"] = pd.Series(both.a[0].speakers)
    if all(id_ in clips for id_ in both.ids):
        known = tables.table([clips[id_] for id_ in both.ids])
        found |= {str(name): known[name] for name in known if name not in (*tables.OWN, "split")}
        for name, (label, unit) in MEASURES.items():
            found[label] = tables.bands(known[name], unit=unit)
    return {name: labels for name, labels in found.items() if labels.nunique() > 1}
