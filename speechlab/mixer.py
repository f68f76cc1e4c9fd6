"""The mixing desk: a language model's weight by ear and eye, on what a CTC model wrote of a few clips.

As :mod:`speechlab.board`, one object shows live in a cell, its sliders searching anew at each let-go, and as
:meth:`Mixer.static`, in a report. The model has run once; a search of fifty clips takes a tenth of a second with words, a second
with labels (:mod:`speechlab.fusion`).

Not covered: choosing weights on the clips that are reported on, which flatters: mix on development clips.
"""

from __future__ import annotations

from typing import Any

import holoviews as hv
import pandas as pd
import panel as pn

from speechlab import plots
from speechlab.fusion import Emissions, best, scored
from speechlab.markup import CSS, Html, framed, samples_html
from speechlab.models.beam import Beam, Search
from speechlab.scoring import Scores
from speechlab.text import Normaliser

BEAMS = [10, 50, 100]
SHOWN = 8  # clips that the search changed
MIXER_CSS = CSS + ":host { display: block; width: 100%; } .rate { font-size: 1.3em; font-variant-numeric: tabular-nums; }"


class Mixer(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """Sliders over a language model's weights.

    Args:
        kept: What a CTC model wrote of some clips.
        beam: The language model, and the way into it.
        normaliser: Of the WER.
        sweep: From :func:`speechlab.fusion.sweep`: is drawn, and its best weights are begun with.
    """

    def __init__(self, kept: Emissions, beam: Beam, normaliser: Normaliser, sweep: pd.DataFrame, **params: Any) -> None:
        super().__init__(**params)
        self.kept, self.beam, self.normaliser, self.sweep = kept, beam, normaliser, sweep
        self.greedy = kept.greedy(normaliser)

    def __panel__(self) -> pn.viewable.Viewable:
        return _Desk(self, live=True).layout

    def static(self) -> pn.Column:
        """The sweep, and what its best weights changed, without sliders."""
        return _Desk(self, live=False).layout

    def score(self, search: Search) -> Scores:
        """The word errors of one search."""
        return scored(self.kept, self.beam, search, self.normaliser)


class _Desk:
    """One display of a mixer."""

    def __init__(self, mixer: Mixer, live: bool) -> None:
        self._mixer = mixer
        first = best(mixer.sweep)
        figure = hv.render(plots.weights(mixer.sweep, mixer.greedy.wer), backend="bokeh")
        self._text = pn.widgets.StaticText(value="", stylesheets=[MIXER_CSS], sizing_mode="stretch_width", margin=(4, 0))
        parts: list[Any] = [pn.pane.Bokeh(figure, sizing_mode="stretch_width", margin=0)]
        if live:
            self.weight = pn.widgets.FloatSlider(
                label="weight of the language model", start=0.0, end=8.0, step=0.25, value=float(first.lm_weight)
            )
            self.score = pn.widgets.FloatSlider(label="word score", start=-6.0, end=6.0, step=0.5, value=float(first.word_score))
            self.beams = pn.widgets.DiscreteSlider(label="beam", options=BEAMS, value=50)
            sliders = [self.weight, *([self.score] if mixer.beam.spells else []), self.beams]
            parts.append(pn.FlexBox(*sliders))
            weights = (self.weight.param.value_throttled, self.score.param.value_throttled, self.beams.param.value_throttled)
            pn.bind(self._moved, *weights, watch=True)
        self.layout = pn.Column(*parts, self._text, sizing_mode="stretch_width", name="mixer")
        self.show(Search(50, float(first.lm_weight), float(first.word_score)))

    def _moved(self, lm_weight: float, word_score: float, beam: int) -> None:
        self.show(Search(beam, lm_weight, word_score if self._mixer.beam.spells else 0.0))

    def show(self, search: Search) -> None:
        """Search with these weights, and say what came of it."""
        greedy, found = self._mixer.greedy, self._mixer.score(search)
        interval = found.interval()
        rate = Html('<span class="rate">WER {:.2f} %</span> [{:.2f}, {:.2f}]').format(
            *(100 * x for x in (found.wer, interval.low, interval.high))
        )
        weights = f"at weight {search.lm_weight:g}, word score {search.word_score:g}, beam {search.beam}"
        counts = f"{found.substitutions} S, {found.deletions} D, {found.insertions} I; greedy {100 * greedy.wer:.2f} %"
        line = Html("<p>{} {}: {}</p>").format(rate, weights, counts)
        changed = [i for i in range(len(found)) if found.hypotheses[i] != greedy.hypotheses[i]]
        changed.sort(key=lambda i: -abs(int(found.errors_U[i] - greedy.errors_U[i])))
        rows = [
            {
                "id": self._mixer.kept.clips[i].id,
                "reference": found.references[i],
                "greedy": greedy.hypotheses[i],
                "searched": found.hypotheses[i],
            }
            for i in changed[:SHOWN]
        ]
        names = {"greedy": "greedy", "searched": "with the language model"}
        table = samples_html(rows, systems=names, caption=f"{len(changed)} of {len(found)} clips changed; those that changed most")
        self._text.value = framed(Html("{}{}").format(line, table))
