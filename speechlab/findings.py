"""What went wrong in an evaluation, section by section: figures, and the utterances behind each bar, cell and dot of them.

Notable: a figure comes with what a click on it means, so that :mod:`speechlab.explorer` wires clicks and a report leaves them out.
Everything is from the evaluation's rows and from what is known of the clips.

Not covered: two systems side by side (:func:`speechlab.results.side_by_side`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import holoviews as hv
import numpy as np
import pandas as pd

from speechlab import calibration, confusions, phones, plots, strata
from speechlab.cases import Cases
from speechlab.errors import InputError, did_you_mean
from speechlab.markup import Html, table_html
from speechlab.phones import NOTHING

SECTIONS = {
    "words": "Words",
    "phones": "Phones",
    "places": "Places",
    "loops": "Loops",
    "strata": "Speakers and clips",
    "confidence": "Confidence",
}
BARS = 15
ROWS = 12  # of a table
STRATA = 40  # of a figure
CUT = 90  # characters of a text in a table
POINTS = 8  # of a line over a number
MEASURED = {  # numbers that clips have: what they are called, and their unit
    "duration": ("duration", "s"),
    "snr": ("SNR", "dB"),
    "rate": ("speaking rate", "words per s"),
    "level": ("level of speech", "dBFS"),
}

Pick = Callable[[int], tuple[str, Sequence[str]]]  # from the row of a figure's data to a title and utterances


@dataclass(frozen=True)
class Finding:
    """A piece of a section.

    Attributes:
        shown: A figure or a text.
        picks: Layers of the figure that can be clicked on, and what a click on a row of their data means.
        leads: What else can be listed: a title, and utterances.
        wide: Whether a figure wants all the width there is.
    """

    shown: Any
    picks: list[tuple[Any, Pick]] = field(default_factory=list)
    leads: tuple[str, Sequence[str]] | None = None
    wide: bool = False


@dataclass(frozen=True, eq=False)
class Findings:
    """What went wrong.

    Attributes:
        cases: The utterances.
        columns: Of the clips, in the order of the cases: :func:`speechlab.strata.table`.
        resamples: Of the intervals.
        seed: Of the intervals.
    """

    cases: Cases
    columns: pd.DataFrame = field(repr=False)
    resamples: int = 1000
    seed: int = 0

    def section(self, name: str) -> list[Finding]:
        """A section's pieces, its figures made anew.

        Args:
            name: Of :data:`SECTIONS`.

        Raises:
            InputError: if there is no such section.
        """
        if name not in SECTIONS:
            raise InputError("There is no such section.", got=name, do=did_you_mean(name, SECTIONS))
        found: list[Finding] = getattr(self, name)()
        return found

    def words(self) -> list[Finding]:
        """Words that were replaced, missed and added, the most common."""
        words = self.cases.words
        kinds = [
            ("Replaced", confusions.substitutions(words), plots.COLOURS[3]),
            ("Missed", confusions.deletions(words).assign(heard=""), plots.COLOURS[0]),
            ("Added", confusions.insertions(words).assign(said=""), plots.COLOURS[1]),
        ]
        found = []
        for title, table, colour in kinds:
            if table.empty:
                found.append(_note(f"{title}: no word."))
                continue
            shown = table.assign(**{side: table[side].replace("", NOTHING) for side in ("said", "heard")})
            figure = plots.substitutions(shown, BARS).opts(title=f"{title}: {int(table['count'].sum()):,}", color=colour)
            found.append(Finding(figure, [(figure, partial(self._pair, table))]))
        return found

    def _pair(self, table: pd.DataFrame, at: int) -> tuple[str, Sequence[str]]:
        said, heard = table.said.iloc[at], table.heard.iloc[at]
        return f"{said or NOTHING} → {heard or NOTHING}", confusions.where(self.cases.words, said, heard)

    def phones(self) -> list[Finding]:
        """Phones that the misheard words differ in, by a dictionary of English."""
        language = self.cases.cuts[0].supervisions[0].language or "a language that is not known"
        if not language.startswith("en"):
            return [_note(f"The dictionary of pronunciations is of English, the clips are in {language}.")]
        found = phones.confusions(self.cases.words)
        unknown = ", ".join(found.unknown.word.head(ROWS)) or "none"
        told = f"OOV rate {100 * found.oov:.1f} %, the most common: {unknown}" if found.tokens else "No word was looked up"
        note = _note(f"Pronunciations in CMUdict, not sounds: {found}. {told}.")
        table = found.table()
        if table.empty:
            return [note]
        figure = plots.phone_confusions(table)

        def pick(at: int) -> tuple[str, Sequence[str]]:
            said, heard = str(figure.data.said.iloc[at]), str(figure.data.heard.iloc[at])
            return f"{said} → {heard}, by pronunciations", found.where(said, heard)

        return [note, Finding(figure, [(figure, pick)], wide=True)]

    def places(self) -> list[Finding]:
        """Errors over the place in an utterance, and over its length."""
        words = self.cases.words
        by_length, by_position = confusions.by_length(words), confusions.by_position(words)
        if by_length.empty:
            return [_note("Nothing was said in any utterance.")]
        tenth = (confusions.DECILES * words.position).fillna(-1).astype(int).clip(upper=confusions.DECILES - 1)
        spans = zip(by_length.low, by_length.high, strict=True)
        lengths = [f"utterances of {low} to {high} words" if low < high else f"utterances of length {high}" for low, high in spans]
        places = [f"{100 * low:.0f} to {100 * high:.0f} % of the way" for low, high in zip(by_position.low, by_position.high, strict=True)]
        group = np.searchsorted(by_length.high.to_numpy(), words.words)
        return [
            self._stacked(plots.errors_by_position(by_position), tenth.to_numpy(), places),
            self._stacked(plots.errors_by_length(by_length), np.where(words.words > 0, group, -1), lengths),
        ]

    def _stacked(self, figure: Any, row_of_word: Any, names: list[str]) -> Finding:
        words, ops = self.cases.words, {kind: op for op, kind in confusions.KINDS.items()}

        def pick(kind: str, at: int) -> tuple[str, Sequence[str]]:
            return f"{kind}, {names[at]}", list(dict.fromkeys(words.id[(words.op == ops[kind]) & (row_of_word == at)]))

        figure.opts(legend_cols=2)  # three in a row are wider than a telephone
        return Finding(figure, [(_clickable(layer), partial(pick, layer.label)) for layer in figure])

    def loops(self) -> list[Finding]:
        """What the system made up: phrases gone round and round, words where nothing was said, texts without an end."""
        scores, ids, rows = self.cases.scores, self.cases.ids, self.cases.evaluation.rows
        loops, invented = confusions.loops(scores, ids), confusions.invented(scores, ids)
        endless = rows[~rows.ended.astype(bool)]
        return [
            _listed("phrases that the system repeated", loops[["id", "text", "times", "said"]], loops.id),
            _listed("heard where nothing was said", invented.drop_duplicates("text")[["text", "times"]], invented.id),
            _listed("decoding that came to no end", endless[["id", "hypothesis"]], endless.id),
        ]

    def strata(self) -> list[Finding]:
        """Error rates of speakers, of what the corpus tells of clips, and over what was measured on them."""
        scores, columns = self.cases.scores, self.columns
        if not scores.words:
            return [_note("Where nothing is said there is no error rate.")]
        found = []
        told = [name for name in columns if name not in strata.OWN and 2 <= columns[name].nunique() <= STRATA]
        for name in ["speaker", *told]:
            table = strata.by(scores, list(columns[name]), resamples=self.resamples, seed=self.seed)
            worst = table.sort_values("wer", ascending=False, na_position="last", kind="stable").head(STRATA)
            figure = plots.wer_by(table if len(table) <= STRATA else worst, f"WER by {name}")
            found.append(self._dots(figure, hv.Points, str(name), list(columns[name])))
        for name, (called, unit) in MEASURED.items():
            values = columns[name].astype(float)
            known = int(np.isfinite(values).sum())
            if known >= strata.SMALL:
                bands = min(POINTS, known // strata.SMALL)
                figure = plots.wer_over(strata.over(scores, values, bands, unit), called, unit)
                found.append(self._dots(figure, hv.Scatter, called, list(strata.bands(values, bands, unit))))
        return found

    def _dots(self, figure: Any, kind: Any, name: str, labels: list[Any]) -> Finding:
        """A click on a stratum's dot lists its utterances, those with most errors first."""
        (dots,) = (layer for layer in figure if isinstance(layer, kind))
        at_of = dict(strata.split(labels))

        def pick(at: int) -> tuple[str, Sequence[str]]:
            stratum = str(dots.data.stratum.iloc[at])
            places = at_of[stratum]
            worst = places[np.argsort(-self.cases.scores.errors_U[places], kind="stable")]
            return f"{name}: {stratum}", [self.cases.ids[i] for i in worst]

        return Finding(figure, [(_clickable(dots), pick)])

    def confidence(self) -> list[Finding]:
        """How far the system's confidence can be trusted, and what rejecting the least sure utterances would gain."""
        judged = self.cases.judged
        if judged is None or not len(judged.confidence_W):
            return [_note("The system does not say how sure it is.")]
        bins = calibration.reliability(judged)
        figure = plots.reliability(bins)
        (dots,) = (layer for layer in figure if isinstance(layer, hv.Points))
        id_W = np.repeat(self.cases.ids, [len(text.split()) for text in judged.scores.hypotheses])

        def pick(at: int) -> tuple[str, Sequence[str]]:
            low, high = (float(end) for end in str(bins.bin.iloc[at]).split(" to "))
            inside_W = (judged.confidence_W >= low - 5e-4) & (judged.confidence_W <= high + 5e-4)  # ends are written with three decimals
            wrong_first = np.argsort(judged.right_W[inside_W], kind="stable")
            return f"words of confidence {bins.bin.iloc[at]}, wrong ones first", list(dict.fromkeys(id_W[inside_W][wrong_first]))

        unsure = ("the least sure first", self.cases.hardest(len(self.cases.ids), "confidence"))
        rejected = calibration.rejection(judged) if judged.scores.words else None
        curve = [Finding(plots.rejection(rejected.table))] if rejected else []
        return [Finding(figure, [(_clickable(dots), pick)]), *curve, Finding(_measures(judged, rejected), leads=unsure)]


def _measures(judged: calibration.Judged, rejected: calibration.Rejection | None) -> Html:
    """The numbers of calibration and rejection, with what each of them says."""
    c = calibration.calibration(judged)
    rows = [
        ("words recognised", f"{c.words:,}", f"{_percent(c.right / c.words, 1)} of them right"),
        ("mean confidence", _percent(c.confidence, 1), "above the share of right words where a system is too sure"),
        ("ECE", _percent(c.ece), f"by chance alone {_percent(c.ece_chance)}; largest of a bin {_percent(c.mce)}"),
        ("Brier score", f"{c.brier:.4f}", "0 is perfect"),
        ("NCE", f"{c.nce:.3f}", "1 is perfect, 0 no better than a constant"),
        ("AUROC", f"{c.auroc:.3f}", "chance that a right word has more than a wrong one"),
    ]
    if rejected:
        for share in (0.05, 0.1, 0.2):
            row = rejected.table.iloc[int(np.abs(rejected.table.rejected.to_numpy() - share).argmin())]
            best = f"the best that could be: {_percent(row.oracle)}"
            rows.append((f"WER after rejecting {_percent(row.rejected, 0)}", _percent(row.wer), best))
        rows.append(("area to the oracle", f"{100 * rejected.excess:.2f} points", "what a better order could gain, on average"))
    shown = [(name, value.replace("nan", "–"), about) for name, value, about in rows]
    return table_html(pd.DataFrame(shown, columns=["measure", "value", "about"]))


def _percent(share: Any, decimals: Literal[0, 1, 2] = 2) -> str:
    return f"{100 * share:.{decimals}f} %"


def _listed(title: str, table: pd.DataFrame, ids: pd.Series[str]) -> Finding:
    """The first rows of a table, from which all utterances can be listed."""
    heading = title[:1].upper() + title[1:]
    if table.empty:
        return _note(f"{heading}: none.")
    texts = {name: [_cut(value) for value in table[name].head(ROWS)] for name in ("text", "hypothesis") if name in table}
    caption = f"{heading}: {ids.nunique()} utterances"
    return Finding(table_html(table.head(ROWS).assign(**texts), caption=caption), leads=(title, list(dict.fromkeys(ids))))


def _cut(text: str) -> str:
    return text if len(text) <= CUT else text[: CUT - 1] + "…"


def _note(text: str) -> Finding:
    return Finding(Html('<p class="faint">{}</p>').format(text))


def _clickable(layer: Any) -> Any:
    return layer.opts(tools=["hover", "tap"], nonselection_alpha=0.4)
