"""Two runs side by side: the difference with its intervals, the verdict, and what becomes of it under each condition.

Notable: everything is from the tables that evaluations left, so nothing is decoded and no corpus is needed; a condition that only one
of them was heard in, or in other words than the other, says so in its row and hides no other.

Not covered: families of trainings, strata, single utterances: ``06_compare``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import panel as pn

from speechlab import conditions, evaluation, plots, results
from speechlab.comparison import MARGIN, Difference, Verdict, compare, judge
from speechlab.errors import InputError, did_you_mean
from speechlab.evaluation import Evaluation
from speechlab.markup import Html, table_html
from speechlab.runs import Run
from speechlab.shelf import live

FORMATS = {"a": "{}", "b": "{}", "b − a, points": "{}", "clips": "{:,}"}


@dataclass(frozen=True)
class Side:
    """A system of a run.

    Attributes:
        name: To be read.
        heard: Its evaluations in its usual context, by condition.
    """

    name: str
    heard: dict[str, Evaluation] = field(repr=False)


@dataclass(frozen=True)
class Row:
    """A condition that either of two systems was heard under.

    Attributes:
        condition: Its name.
        found: b minus a; None where it cannot be had.
        verdict: Of that.
        why: It cannot be had.
        a: WER and interval, to be read.
        b: Likewise.
        clips: Of both.
    """

    condition: str
    found: Difference | None = None
    verdict: Verdict | None = None
    why: str = ""
    a: str = "–"
    b: str = "–"
    clips: int = 0


def systems(run: Run) -> list[str]:
    """The systems that a run's evaluations are of, the trained one first."""
    names = {path.stem.split("--")[0] for path in (run.path / "evaluations").glob("*--*--*.json")}
    return sorted(names, key=lambda name: (name == "pretrained", name))


def side(run: Run, system: str = "") -> Side:
    """A system of a run, as it was heard.

    Args:
        run: The run.
        system: Of :func:`systems`; empty is the trained one.

    Raises:
        InputError: if it was not evaluated.
    """
    known = systems(run)
    chosen = system or next(iter(known), "")
    if chosen not in known:
        expected = ", ".join(known) or "an evaluated run"
        do = did_you_mean(system, known) if known else f"speechlab evaluate {run.id}"
        raise InputError(f"Run {run.id} holds no evaluation of that system.", got=chosen or "nothing evaluated", expected=expected, do=do)
    found = results.usual_first([e for e in evaluation.load(run.path / "evaluations") if e.system == chosen])
    heard: dict[str, Evaluation] = {}
    for one in found:
        heard.setdefault(one.condition, one)
    if not heard:
        raise InputError("The evaluations are of another version of the lab.", got=run.id, do=f"speechlab evaluate {run.id}")
    return Side(f"{run.id}, {'before training' if chosen == 'pretrained' else chosen}", heard)


def rows(a: Side, b: Side, normaliser: str = "english", margin: float = MARGIN, resamples: int = 1000, seed: int = 0) -> list[Row]:
    """The difference under every condition, clean speech first.

    Args:
        a: The system in use.
        b: The new one.
        normaliser: By name.
        margin: Points of WER that b may be worse.
        resamples: Of the intervals.
        seed: Of the intervals.
    """
    places = {name: place for place, name in enumerate(conditions.STANDARD)}
    names = sorted({*a.heard, *b.heard}, key=lambda name: (places.get(name, len(places)), name))
    found = []
    for name in names:
        one, other = a.heard.get(name), b.heard.get(name)
        if one is None or other is None:
            found.append(Row(name, why=f"only {(a if one else b).name} was heard in it"))
            continue
        first, second = one.scores(normaliser), other.scores(normaliser)
        shown: dict[str, Any] = {"clips": len(one.rows)}
        for key, scores in (("a", first), ("b", second)):
            interval = scores.interval(resamples=resamples, seed=seed)
            rated = f"{100 * scores.wer:.2f} % [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
            shown[key] = rated if scores.words else f"{scores.insertions} words made up"
        if not (first.words and second.words):
            found.append(Row(name, why="nothing was said in it", **shown))
            continue
        try:
            if list(one.rows.id) != list(other.rows.id):
                raise InputError("They did not answer the same utterances.")
            difference = compare(first, second, resamples, seed)
        except InputError as e:
            found.append(Row(name, why=str(e).splitlines()[0], **shown))
        else:
            found.append(Row(name, difference, judge(difference, margin), **shown))
    return found


class Contrast(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """Two systems as they compare: verdict, figure, tests and a table by condition.

    Args:
        a: The system in use.
        b: The new one.
        normaliser: By name.
        margin: Points of WER that b may be worse.
        resamples: Of the intervals.
        seed: Of the intervals.
    """

    def __init__(
        self, a: Side, b: Side, normaliser: str = "english", margin: float = MARGIN, resamples: int = 1000, seed: int = 0, **params: Any
    ) -> None:
        super().__init__(**params)
        self.a, self.b, self.margin = a, b, margin
        self.rows = rows(a, b, normaliser, margin, resamples, seed)

    @property
    def first(self) -> Row | None:
        """The condition that decides: the first that both were heard in, which is clean speech where they have it."""
        return next((row for row in self.rows if row.found), None)

    def __panel__(self) -> pn.viewable.Viewable:
        sides = Html("<p><b>a</b>, in use: {}<br><b>b</b>, new: {}</p>").format(self.a.name, self.b.name)
        shown: list[Any] = [live(sides)]
        if (first := self.first) is None or first.found is None or first.verdict is None:
            shown.append(live(Html("<p>There is no condition in which they can be compared.</p>")))
        else:
            told = Html('<p class="headline"><b>{}</b></p><p>On {}; b minus a, so less is better.</p>')
            shown += [
                live(told.format(first.verdict.text, first.condition)),
                pn.pane.HoloViews(plots.difference(first.found, self.margin), linked_axes=False, sizing_mode="stretch_width"),
                live(_tests(first.found)),
            ]
        return pn.Column(*shown, live(by_condition_html(self.rows)), sizing_mode="stretch_width", name="contrast")

    def static(self) -> pn.viewable.Viewable:
        """The same: nothing on it moves."""
        return self.__panel__()


def _tests(found: Difference) -> Html:
    about = "b minus a. The sign-flip test is the one to quote; MAPSSWE and the t-test take segments and utterances as independent"
    return table_html(results.tests(found), {"p": "{:.4f}"}, caption=about)


def by_condition_html(found: Sequence[Row]) -> Html:
    """A table of conditions: both rates, the difference with its interval, the verdict.

    Args:
        found: From :func:`rows`.
    """
    table = pd.DataFrame(
        {
            "condition": [row.condition for row in found],
            "clips": [row.clips for row in found],
            "a": [row.a for row in found],
            "b": [row.b for row in found],
            "b − a, points": [_points(row.found) for row in found],
            "verdict": [row.verdict.kind if row.verdict else row.why for row in found],
        }
    )
    return table_html(
        table, FORMATS, caption="By condition; WER in the usual context, with 95 % intervals over utterances (these speakers)"
    )


def _points(found: Difference | None) -> str:
    return "–" if found is None else f"{found.points:+.2f} [{found.interval.low:+.2f}, {found.interval.high:+.2f}]"
