"""The playground: a clip from a file or the microphone, what one model or two hear in it, and what noise, codecs and rooms do to that.

Notable: what is sent is decoded in one process (:mod:`speechlab.uploads`) and heard in another (:mod:`speechlab.worker`), together with
what others sent, so the page stays alive, and everyone sees the text as it comes.

Not covered: recognition while the microphone is still on.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn

from speechlab import audio, config, door, listen, passages, players, text, uploads, worker
from speechlab.audio import Wave
from speechlab.errors import InputError
from speechlab.markup import CSS, FIELD_CSS, LEGEND, Html, alignment_html, framed, status, table_html
from speechlab.passages import Passage
from speechlab.scoring import score
from speechlab.units import SAMPLE_RATE, Seconds, clock

NONE = "none"
EFFECTS = {effect.name: effect for effect in listen.EFFECTS}
USUAL = ("tiny.en",)
FILE_CSS = (
    FIELD_CSS
    + """
.bk-input::file-selector-button { font: inherit; color: inherit; background: #8882; border: 1px solid #8888; border-radius: .3em; }
"""
)


class Playground(pn.viewable.Viewer):  # type: ignore[misc]  # panel's types are not read
    """Shows itself in a cell and as a page.

    Args:
        names: Models that can be chosen, as for :func:`speechlab.systems.resolve`; the first is chosen.
        language: Of the speech, for models that are told.
        keep: Folder for clips that are kept; None is ``playground`` in the folder of runs.

    Raises:
        InputError: if no model is named.
    """

    def __init__(self, names: Sequence[str] = USUAL, language: str = "en", keep: str | Path | None = None, **params: Any) -> None:
        super().__init__(**params)
        if not names:
            raise InputError("The playground has no model.", got="none", expected="a name", do=f"Playground({list(USUAL)})")
        self.language, self._keep = language, Path(keep) if keep else config.reports() / "playground"
        self._wave_N: Wave | None = None
        self._changed_N: Wave | None = None
        self._heard: list[tuple[str, list[Passage]]] = []
        self._took: dict[str, Seconds | None] = {}
        self._blinded, self._turn = False, 0
        self._hearing: worker.Hearing | None = None
        wide = {"sizing_mode": "stretch_width", "max_width": 420, "margin": 0, "stylesheets": [FILE_CSS]}
        self.file = pn.widgets.FileInput(label="A recording", accept="audio/*,video/*,.flac,.opus,.g722", **wide)
        self.microphone = players.Microphone(margin=0)
        self.a = pn.widgets.Select(label="Model", options=list(names), **wide)
        self.b = pn.widgets.Select(label="beside it", options=[NONE, *names], **wide)
        self.blind = _tick("blind: names are shown on request")
        self.reveal = pn.widgets.Button(label="Show the names", variant="outline", visible=False, margin=0)
        self.effect = pn.widgets.Select(label="Heard through", options=[NONE, *EFFECTS], **wide)
        self.strength = pn.widgets.DiscreteSlider(label="strength", options=[0.0], visible=False, **wide)
        self.reference = pn.widgets.TextInput(label="What was said, for the WER", **wide)
        self.go = pn.widgets.Button(label="Transcribe", color="primary", disabled=True, margin=0)
        self.consent = _tick("whoever speaks agrees that the clip is kept for tests")
        keeps = "Keep the clip" if door.may_change() else "Keep the clip: operators only"
        self.store = pn.widgets.Button(label=keeps, variant="outline", disabled=True, margin=0)
        self.said, self.rates = _live(), _live()
        self.player = players.Player(visible=False, sizing_mode="stretch_width")
        self.saves = pn.FlexBox(visible=False, gap="8px", margin=(6, 0))
        for kind in passages.FORMATS:
            save = pn.widgets.FileDownload(
                callback=lambda kind=kind: self._written(kind), filename=f"transcript.{kind}", label=kind.upper()
            )
            save.param.update(margin=0, variant="outline")
            self.saves.append(save)
        self.file.param.watch(self._sent, "value")
        self.microphone.param.watch(self._recorded, "wav")
        self.effect.param.watch(self._chosen, "value")
        self.strength.param.watch(self._again, "value_throttled")
        self.go.on_click(self._asked)
        self.store.on_click(self._stored)
        self.reveal.on_click(lambda _: self._named())
        self.reference.param.watch(lambda _: self._rated(), "value")
        for box in (self.reference, self.consent):
            box.param.watch(lambda _: self._storable(), "value")
        self._tell("Choose a file or record something.")

    def __panel__(self) -> pn.viewable.Viewable:
        """The layout."""
        if pn.state.curdoc and pn.state.curdoc.session_context:  # on a page that was left nobody waits
            pn.state.on_session_destroyed(lambda _: self._next())
        row = {"sizing_mode": "stretch_width", "align_items": "end", "gap": "8px 16px", "margin": (6, 0)}
        return pn.Column(
            pn.FlexBox(self.file, self.microphone, **row),
            pn.FlexBox(self.a, self.b, self.blind, **row),
            pn.FlexBox(self.effect, self.strength, self.reference, **row),
            pn.FlexBox(self.go, self.reveal, **row),
            self.said,
            self.player,
            self.rates,
            self.saves,
            pn.FlexBox(self.consent, self.store, **row),
            sizing_mode="stretch_width",
        )

    # -- a clip comes -------------------------------------------------------------------------------

    async def _sent(self, event: Any) -> None:
        if event.new:
            await self._take(bytes(event.new), self.file.filename or "the file")

    async def _recorded(self, event: Any) -> None:
        if event.new:
            await self._take(base64.b64decode(event.new), "the recording")

    async def _take(self, data: bytes, name: str) -> None:
        turn = self._next()
        self._tell("Reading …")
        try:
            wave_N = await asyncio.to_thread(uploads.decoded, data, text.shown(name))
        except InputError as e:
            if turn == self._turn:
                self._wave_N, self.go.disabled = None, True
                self._tell(str(e))
            return
        if turn == self._turn:
            self._wave_N = wave_N
            await self._show(turn)

    def _next(self) -> int:
        """A new request: what earlier ones still come to is let go."""
        self._turn += 1
        if self._hearing is not None:
            self._hearing.close()
        return self._turn

    async def _chosen(self, event: Any) -> None:
        effect = EFFECTS.get(event.new)
        self.strength.visible = effect is not None and len(effect.strengths) > 1
        if effect is not None:
            unit = f", {effect.unit}" if effect.unit else ""
            self.strength.param.update(label=f"{effect.parameter}{unit}", options=list(effect.strengths), value=effect.usual)
        await self._again()

    async def _again(self, *_: Any) -> None:
        if self._wave_N is not None:
            await self._show(self._next())

    async def _show(self, turn: int) -> None:
        """The clip as it is now heard, and then what is recognised in it."""
        assert self._wave_N is not None
        effect = EFFECTS.get(self.effect.value)
        wave_N = self._wave_N
        changed_N = await asyncio.to_thread(effect.apply, wave_N, float(self.strength.value), 1) if effect else wave_N
        pictured = await asyncio.to_thread(players.picture, changed_N)
        if turn != self._turn:
            return
        self._changed_N, self._heard = changed_N, []
        self.player.param.update(rows=[], visible=True, **pictured)
        self.rates.value, self.saves.visible = "", False
        await self._transcribe(turn)

    # -- it is recognised -----------------------------------------------------------------------------

    async def _asked(self, _: Any) -> None:
        if self._changed_N is not None:
            await self._transcribe(self._next())

    async def _transcribe(self, turn: int) -> None:
        assert self._changed_N is not None
        wave_N = self._changed_N
        names = list(dict.fromkeys(name for name in (self.a.value, self.b.value) if name != NONE))
        self._blinded = bool(self.blind.value) and len(names) > 1
        if self._blinded:
            random.shuffle(names)
        self.go.disabled, self._took = True, {}
        self._heard = [(name, []) for name in names]
        try:
            for i, name in enumerate(names):
                self._tell(f"{self._title(i)} listens …")
                self._hearing = hearing = worker.SHARED.ask(name, self.language, wave_N)
                async for passage in hearing:
                    if turn != self._turn:
                        return
                    self._heard[i][1].append(passage)
                    self.player.rows = players.rows([(self._title(j), heard) for j, (_, heard) in enumerate(self._heard)])
                if turn != self._turn:
                    return
                self._took[name] = hearing.seconds
        except InputError as e:
            if turn == self._turn:
                self._tell(str(e))
            return
        finally:
            if turn == self._turn:
                self.go.disabled = False
        silent = not any(passage.words for _, heard in self._heard for passage in heard)
        self._tell("Nobody speaks in it." if silent else "")
        self.reveal.visible = self._blinded
        self.saves.visible = not silent
        self._rated()
        self._storable()

    def _title(self, i: int) -> str:
        return "first" if self._blinded and not i else "second" if self._blinded else self._heard[i][0]

    def _named(self) -> None:
        self._blinded, self.reveal.visible = False, False
        self.player.rows = players.rows(self._heard)
        self._rated()

    def _rated(self) -> None:
        """Time, and against a reference errors, of each system."""
        if not self._heard or self._changed_N is None:
            return
        seconds, said = len(self._changed_N) / SAMPLE_RATE, self.reference.value.strip()
        rules = text.normaliser("english" if self.language == "en" else "basic")
        rows, lines = [], []
        for i, (name, heard) in enumerate(self._heard):
            hypothesis, took = " ".join(p.text for p in heard), self._took.get(name)
            row: dict[str, object] = {"system": self._title(i)}
            row |= {"time": clock(took), "RTF": f"{took / seconds:.2f}"} if took is not None else {}
            if said and rules.words(said):
                counts = score([said], [hypothesis], rules)
                row |= {"WER": f"{100 * counts.wer:.1f} %", "errors": f"{counts.errors} of {counts.words} words"}
                lines.append(Html("<p>{}: {}</p>").format(self._title(i), alignment_html(said, hypothesis, rules)))
            rows.append(row)
        body = Html("{}{}{}").format(table_html(pd.DataFrame(rows)), Html("").join(lines), LEGEND if lines else "")
        self.rates.value = framed(body)

    # -- it is taken along ------------------------------------------------------------------------------

    def _written(self, kind: str) -> io.StringIO:
        return io.StringIO(passages.FORMATS[kind](self._heard[0][1] if self._heard else []))

    def _storable(self) -> None:
        ready = self.consent.value and self.reference.value.strip() and self._wave_N is not None
        self.store.disabled = not (ready and door.may_change())

    def _stored(self, _: Any) -> None:
        if self._wave_N is None or not (self.consent.value and self.reference.value.strip()):
            return
        if not door.may_change():
            self._tell(door.OPERATORS)
            return
        path = keep(self._wave_N, self.reference.value.strip(), self._keep)
        self._tell(f"Kept as {path.name}; train or test on it with corpus.name=own and corpus.root={self._keep}")

    def _tell(self, words: str) -> None:
        self.said.value = status(words)


def keep(wave_N: Wave, said: str, folder: Path) -> Path:
    """Add a clip and what was said in it to a folder that is a corpus of JSON lines.

    Args:
        wave_N: 16 kHz samples.
        said: Its transcript.
        folder: Made where it is not there.

    Returns:
        The clip's file, named by its samples.
    """
    name = audio.pcm_sha256(wave_N)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.flac"
    if not path.exists():
        audio.save_flac(path, wave_N)
        row = {"audio_filepath": path.name, "text": said, "duration": len(wave_N) / SAMPLE_RATE}
        with (folder / "manifest.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _tick(label: str) -> pn.widgets.CheckBoxGroup:
    # a single Checkbox has no label that a screen reader would read (Panel 1.9)
    return pn.widgets.CheckBoxGroup(options=[label], margin=0)


def _live() -> pn.widgets.StaticText:
    sheet = CSS + ":host { display: block; width: 100%; }"
    return pn.widgets.StaticText(value="", stylesheets=[sheet], sizing_mode="stretch_width", margin=0)
