"""Clips that want a person's ear: what the check remarked on, and transcripts that a model doubts, to be heard and decided.

Notable: a decision is a line in the user's own file (:mod:`speechlab.corpora.decisions`), written at the click; the
corpus takes it into account when it is prepared again, and its manifest changes with it. What is shown carries its
sound, so a static page reads offline.

Not covered: editing where a clip begins and ends, several people deciding at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn

from speechlab import audio, corpora
from speechlab.corpora import decisions
from speechlab.corpora.base import Entry
from speechlab.corpora.check import SET_ASIDE, Finding, listed
from speechlab.errors import InputError
from speechlab.markup import CSS, LEGEND, Html, alignment_html, player_html, samples_html, table_html
from speechlab.text import normaliser_for

SHOWN = 3  # clips a remark or reason
REVIEW_CSS = CSS + ":host { display: block; width: 100%; } .place { opacity: .8; } .said { font-size: 1.15em; margin: .4em 0; }"


def counts_html(total: Mapping[str, Mapping[str, int]]) -> Html:
    """The check's counts as a table: verdicts, under each its repairs or reasons, and the remarks.

    Args:
        total: From :func:`speechlab.corpora.check.counts`.
    """
    shape = {"verdict": Html("<b>{}</b>"), "remark": Html("{}")}
    rows = [(shape.get(kind, Html("&emsp;{}")).format(name), count) for kind, name, count in listed(total)]
    clips = sum(total["verdict"].values())
    table = pd.DataFrame(rows, columns=["", "clips"], dtype=object)
    table["share"] = [count / max(clips, 1) for count in table["clips"]]
    return table_html(table, {"clips": "{:d}", "share": "{:.1%}"})


def examples_html(found: Iterable[tuple[Entry, Finding]], shown: int = SHOWN) -> Html:
    """A few clips of each remark, repair and reason, with players where there is something to hear.

    Args:
        found: Entries and findings; the first of each kind are shown.
        shown: How many of each.
    """
    kinds: dict[str, list[Html]] = {}
    for entry, finding in found:
        names = [f"set aside: {finding.why.partition(':')[0]}"] if finding.verdict == SET_ASIDE else []
        names += [f"repaired: {repair.partition(':')[0]}" for repair in finding.repairs]
        names += [f"remarked: {remark}" for remark in finding.remarks if finding.verdict != SET_ASIDE]
        for name in names:
            rows = kinds.setdefault(name, [])
            if len(rows) < shown:
                rows.append(_example(entry, finding))
    parts = [Html("<h3>{}</h3>{}").format(name, Html("").join(rows)) for name, rows in sorted(kinds.items())]
    return Html("").join(parts) or Html('<p class="faint">Nothing was remarked on.</p>')


def _example(entry: Entry, finding: Finding) -> Html:
    m = finding.measures
    told = ""
    if m is not None:
        ratio = "" if math.isnan(m.snr) else f" · SNR {m.snr:.0f} dB"
        told = f"{m.seconds:.2f} s · {m.level:.0f} dBFS{ratio} · {m.bandwidth} Hz"
    try:
        if entry.audio is None:
            raise InputError("nothing to hear")
        part = {"start": entry.start, "duration": entry.duration} if entry.start is not None else {}
        player = player_html(audio.encode_mp3(audio.decode(entry.audio, entry.format, max_seconds=120.0, **part)))  # type: ignore[arg-type]
    except InputError:
        player = Html("")
    said = finding.text or "(no text)"
    return Html('<p>{} {}<br><span class="faint">{} {} {}</span></p>').format(player, said, entry.id, told, finding.why)


def sample(corpus: corpora.Corpus, count: int) -> list[Any]:
    """So many clips of a corpus, whichever their split, by the hash of their ids; all if the count is negative."""
    cuts = [cut for cuts in corpus.cuts.values() for cut in cuts]
    cuts.sort(key=lambda cut: hashlib.sha256(cut.id.encode()).digest())
    return cuts if count < 0 else cuts[:count]


class Review(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """Doubted transcripts one by one: hear the clip, read both texts, accept, fix or drop.

    ``Review(...)`` as a cell's last line has the buttons, ``.static()`` lists the clips for a page.

    Args:
        table: From :func:`speechlab.transcripts.check`, the most doubtful first.
        cuts: Its clips.
        path: Where decisions are kept.
        language: English is compared under the english normaliser, others under basic.
        top: How many clips are shown.
    """

    def __init__(self, table: pd.DataFrame, cuts: Iterable[Any], path: Path, language: str = "en", top: int = 50, **params: Any) -> None:
        super().__init__(**params)
        self.rows: Sequence[Mapping[str, Any]] = [] if table.empty else table.head(top).to_dict("records")  # type: ignore[assignment]
        self.path, self.rules = path, normaliser_for(language)
        wanted = {row["id"] for row in self.rows}
        self._cuts = {cut.id: cut for cut in cuts if cut.id in wanted}

    def __panel__(self) -> pn.viewable.Viewable:
        return self.panel()

    def panel(self) -> pn.Column:
        """The first clip that nobody has decided about, and buttons that lead to the next."""
        return _Desk(self).layout

    def static(self) -> Html:
        """All shown clips with players, the difference marked."""
        rows = [{**row, "audio": self.sound(row["id"])} for row in self.rows]
        return samples_html(rows, self.rules, systems={"hypothesis": "a model hears"})

    def sound(self, id: str) -> bytes:
        """A clip as MP3."""
        return audio.encode_mp3(corpora.load_audio(self._cuts[id]))


class _Desk:
    """One display of a review: where it stands, and what the buttons do."""

    def __init__(self, review: Review) -> None:
        self._review, self._rules, self._at = review, review.rules, 0
        self._text = pn.widgets.TextInput(label="what is said", sizing_mode="stretch_width")
        self._view = pn.widgets.StaticText(value="", stylesheets=[REVIEW_CSS], sizing_mode="stretch_width")
        buttons = []
        for verdict, kind in (("accept", "success"), ("fix", "primary"), ("drop", "danger")):
            button = pn.widgets.Button(label=verdict, button_type=kind, width=90)
            button.on_click(lambda _, verdict=verdict: self.decide(verdict))
            buttons.append(button)
        for name, by in (("◀", -1), ("▶", 1)):
            button = pn.widgets.Button(label=name, width=45)
            button.on_click(lambda _, by=by: self.show(self._at + by))
            buttons.append(button)
        decided = decisions.read(review.path)
        self.show(next((i for i, row in enumerate(review.rows) if row["id"] not in decided), 0))
        self.layout = pn.Column(self._view, self._text, pn.Row(*buttons), sizing_mode="stretch_width", name="review")

    def show(self, at: int, note: str = "") -> None:
        """Bring a clip to the desk."""
        rows = self._review.rows
        if not rows:
            self._view.value = str(Html('<div class="speechlab"><p>No transcript is in doubt.</p></div>'))
            return
        self._at = at % len(rows)
        row = rows[self._at]
        decided = decisions.read(self._review.path)
        before = decided.get(row["id"])
        known = sum(other["id"] in decided for other in rows)
        self._text.value = before.text if before and before.text else str(row["reference"])
        self._view.value = str(
            Html(
                '<div class="speechlab"><p class="place">{} of {} · {} · {} decided{}</p>{}'
                '<p class="said">{}</p>{}<p class="faint">{}</p></div>'
            ).format(
                self._at + 1,
                len(rows),
                row["id"],
                known,
                f" · this one: {before.verdict}" if before else "",
                player_html(self._review.sound(row["id"])),
                alignment_html(row["reference"], row["hypothesis"], self._rules),
                LEGEND,
                note,
            )
        )

    def decide(self, verdict: str) -> None:
        """Write a decision down and go on; what cannot be written is said in its place."""
        row = self._review.rows[self._at]
        text = self._text.value.strip() if verdict == "fix" else ""
        try:
            if verdict == "fix" and text == row["reference"]:
                raise InputError("The text is the one that stands there already: accept it, or change it first.")
            decisions.decide(self._review.path, decisions.Decision(row["id"], verdict, text, row["reference"]))
        except InputError as e:
            self.show(self._at, str(e))
            return
        self.show(self._at + 1)
