"""Anything known of a clip as a stratum of its error rate: what the corpus says, what was measured, and numbers cut into bands.

Notable: a stratum of few utterances is shown with its number and without a rate, and one that a single speaker makes up says
so, for then nobody can tell the stratum from the person. Unknown values are a stratum too, so nothing is left out in silence.

Two systems stratum by stratum are :func:`speechlab.comparison.strata`'s.

Not covered: several strata at once (interactions); causes: short clips, say, may also be those of one speaker.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from speechlab import corpora, vad
from speechlab.errors import InputError
from speechlab.measures import measure
from speechlab.scoring import Scores
from speechlab.statistics import SCOPES, By, Ints

SMALL = 20  # utterances of a stratum under which its rates say next to nothing
UNKNOWN = "unknown"
OWN = ("id", "speaker", "language", "duration", "words", "rate", "speech", "level", "snr")


def table(cuts: Iterable[Any], measured: bool = True) -> pd.DataFrame:
    """What is known of each clip.

    Args:
        cuts: lhotse cuts of a :class:`speechlab.corpora.Corpus`.
        measured: Whether to listen to them too; an hour of audio takes well under a minute of one core.

    Returns:
        One row a clip: id, speaker, language, every column of the corpus (missing where it does not say; "level (corpus)"
        where the name is one of ours), duration (s), words (as written), rate (words per second of speech, or of the clip where nobody
        listened or heard any), speech (s, by VAD), level (dBFS, of active speech) and snr (dB, estimated); the last three
        ``nan`` if not measured.

    Raises:
        InputError: as for :func:`speechlab.corpora.load_audio`.
    """
    rows = []
    for cut in cuts:
        (said,) = cut.supervisions
        told = {f"{name} (corpus)" if name in OWN else name: value for name, value in ((cut.custom or {}).get("columns") or {}).items()}
        words = sum(any(map(str.isalnum, word)) for word in said.text.split())  # dashes and the like are not spoken
        found: dict[str, float] = {"speech": math.nan, "level": math.nan, "snr": math.nan}
        if measured:
            wave_N = corpora.load_audio(cut)
            heard = measure(wave_N, vad.speech(wave_N))
            found = {"speech": heard.speech, "level": heard.level, "snr": heard.snr}
        spoken = found["speech"] if found["speech"] > 0 else cut.duration
        row = {"id": cut.id, "speaker": said.speaker or "", "language": said.language, **told}
        rows.append({**row, "duration": cut.duration, "words": words, "rate": words / spoken, **found})
    names = dict.fromkeys(name for row in rows for name in row if name not in OWN)
    return pd.DataFrame(rows, columns=[*OWN[:3], *names, *OWN[3:]])


def bands(values: npt.ArrayLike, n: int | Sequence[float] = 4, unit: str = "") -> pd.Series:
    """Numbers as a few readable ranges, in order.

    Args:
        values: One an utterance (U); what is not a finite number is ``unknown``.
        n: How many bands, with about as many utterances in each; equal values stay together, so there may be fewer. Or the
            edges between bands: an edge itself belongs to the band below.
        unit: Behind the numbers.

    Returns:
        A label for each value, as an ordered categorical: "2.1 to 3.4 s" spans the smallest and the largest in the band; with
        edges given, "up to 2 s", "2 to 5 s" and "over 5 s". Categories go from low to high, ``unknown`` last if there is any.

    Raises:
        InputError: if there is not at least one band, or the edges do not ascend.
    """
    numbers = np.asarray(values, np.float64)
    known = np.isfinite(numbers)
    if isinstance(n, int):
        if n < 1:
            raise InputError("There are no bands.", got=f"{n}", expected="1 or more, or edges between them", do="4 make quarters")
        inner = np.quantile(numbers[known], np.arange(1, n) / n, method="inverted_cdf") if known.any() else np.zeros(0)
    else:
        inner = np.asarray(n, np.float64)
        if not len(inner) or not np.isfinite(inner).all() or (np.diff(inner) <= 0).any():
            raise InputError("The edges cannot be used.", got=f"{list(n)}", expected="numbers that ascend, one or more", do="sort them")
    place_U = np.searchsorted(inner, numbers)
    here = sorted(set(place_U[known]))
    if isinstance(n, int):
        spans = [(numbers[known & (place_U == at)].min(), numbers[known & (place_U == at)].max()) for at in here]
        names = dict(zip(here, _ranges(spans), strict=True))
    else:
        names = {at: _open(at, [f"{edge:g}" for edge in inner]) for at in here}
    named = {at: f"{name} {unit}".rstrip() for at, name in names.items()}
    labels = [named[at] if is_known else UNKNOWN for at, is_known in zip(place_U, known, strict=True)]
    categories = list(dict.fromkeys([*named.values(), *([] if known.all() else [UNKNOWN])]))
    return pd.Series(pd.Categorical(labels, categories, ordered=True))


def _open(at: int, edges: list[str]) -> str:
    if at == 0:
        return f"up to {edges[0]}"
    return f"over {edges[-1]}" if at == len(edges) else f"{edges[at - 1]} to {edges[at]}"


def _ranges(spans: Sequence[tuple[float, float]]) -> list[str]:
    """With as few decimals as a tenth of a band needs, or more until no two ranges read alike."""
    width = (spans[-1][1] - spans[0][0]) / len(spans) if spans else 0.0
    decimals = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 1
    for places in range(min(decimals, 9), 10):
        texts = [tuple(f"{round(end, places) + 0.0:.{places}f}" for end in span) for span in spans]
        if len(set(texts)) == len(texts):
            break
    return [low if low == high else f"{low} to {high}" for low, high in texts] if spans else []


def split(labels: Sequence[Any] | pd.Series) -> Iterator[tuple[str, Ints]]:
    """Every stratum with the places of its utterances.

    Args:
        labels: One an utterance (U); missing and empty ones are ``unknown``.

    Yields:
        In the order of their categories, where they have one as :func:`bands` has, else sorted; ``unknown`` last.
    """
    names = np.array([UNKNOWN if _missing(label) else str(label) for label in labels], dtype=object)
    present = set(names)
    order = list(labels.cat.categories) if isinstance(labels, pd.Series) and labels.dtype == "category" else sorted(present)
    for name in [*(str(name) for name in order if name != UNKNOWN), UNKNOWN]:
        if name in present:
            yield name, np.flatnonzero(names == name)


def _missing(label: Any) -> bool:
    return label is None or label != label or not str(label).strip()  # NaN differs from itself


def by(scores: Scores, labels: Sequence[Any] | pd.Series, units: By = "utterance", resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The error rate in each stratum.

    Args:
        scores: Of all utterances (U).
        labels: The stratum of each: a column of :func:`table`, or :func:`bands` of one.
        units: What the intervals vary: ``utterance`` for these speakers, ``speaker`` for new ones.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        One row a stratum: stratum, utterances, words, speakers (0 where they are not known), wer, low, high (fractions; 95 %),
        scope of the interval, warning. Under :data:`SMALL` utterances the rate is ``nan`` too.

    Raises:
        InputError: if there is not a label for each utterance, or as for :meth:`speechlab.scoring.Scores.interval`.
    """
    if len(labels) != len(scores):
        got = f"{len(labels)} labels, {len(scores)} utterances"
        raise InputError("There is not a stratum for each utterance.", got=got, expected="the same number", do="join them by id")
    rows = []
    for label, chosen in split(labels):
        part = scores.only(chosen)
        speakers = len({*(part.speakers or ())} - {""})
        row: dict[str, Any] = {"stratum": label, "utterances": len(part), "words": part.words, "speakers": speakers}
        remarks = ["of one speaker: the stratum cannot be told from the speaker"] if speakers == 1 else []
        if len(part) < SMALL:
            row |= {"wer": math.nan, "low": math.nan, "high": math.nan}
            remarks = [f"{len(part)} utterances are too few", *remarks]
        else:
            interval = part.interval(resamples, seed, by=units)
            row |= {"wer": part.wer, "low": interval.low, "high": interval.high}
            remarks += [interval.warning] if interval.warning else []
        rows.append({**row, "scope": SCOPES[units], "warning": "; ".join(remarks)})
    return pd.DataFrame(rows, columns=["stratum", "utterances", "words", "speakers", "wer", "low", "high", "scope", "warning"])


def over(scores: Scores, values: npt.ArrayLike, n: int = 8, unit: str = "", units: By = "utterance") -> pd.DataFrame:
    """The error rate over a number, as points of a line.

    Args:
        scores: Of all utterances (U).
        values: A number for each, such as the column duration, rate, level or snr of :func:`table`.
        n: How many points at most: fewer where they would stand on less than :data:`SMALL` utterances each.
        unit: Of the number.
        units: As for :func:`by`.

    Returns:
        What :func:`by` gives for equally many utterances a band, and before it middle, the median of the band's values;
        ``nan`` for those of which nothing is known.

    Raises:
        InputError: as for :func:`bands` and :func:`by`.
    """
    numbers = np.asarray(values, np.float64)
    labels = bands(numbers, min(n, max(1, int(np.isfinite(numbers).sum()) // SMALL)), unit)
    found = by(scores, labels, units)
    middle = pd.Series(np.where(np.isfinite(numbers), numbers, np.nan)).groupby(labels, observed=True).median()
    return found.assign(middle=[float(middle[label]) for label in found.stratum])[["middle", *found.columns]]
