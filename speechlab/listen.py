"""The listening bench: a clip and what each augmentation makes of it, side by side, to be seen and heard.

Notable: every transform is a pure function of (clip, strength, seed), the very one that training uses; a slider calls
it again and streams the result into the figure that is there. Players and figures carry their data, so the bench
reads offline.

Not covered: recordings longer than a minute (listen to a part), chains of transforms (see
:meth:`speechlab.augment.Augmenter.story`), the masks on features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import holoviews as hv
import numpy as np
import numpy.typing as npt
import pandas as pd
import panel as pn
import torch
from bokeh.models import ColumnDataSource

from speechlab import audio, effects, plots, vad
from speechlab.audio import Wave
from speechlab.augment import Augmenter
from speechlab.errors import InputError, did_you_mean
from speechlab.features import FRAMES_PER_SECOND, LogMel, mask
from speechlab.markup import CSS, Html, framed, player_html, table_html
from speechlab.units import SAMPLE_RATE, Seconds

if TYPE_CHECKING:
    from speechlab.corpora import Corpus

LONGEST: Seconds = 60.0  # a page carries each clip some twenty times
USUAL: Seconds = 4.0  # a clip that is looked at where none is named
GRID = {"display": "grid", "grid-template-columns": "repeat(auto-fit, minmax(min(max(300px, 40%), 100%), 1fr))", "gap": "4px 16px"}
BENCH_CSS = (
    CSS
    + """
:host, .bk-clearfix { display: block; width: 100%; }
h3 { margin: .8em 0 0; font-size: 1.05em; } p { margin: .2em 0; }
"""
)


@dataclass(frozen=True)
class Effect:
    """One augmentation and the strengths it is heard at.

    Attributes:
        name: As in the config's augment section, with its kind.
        about: A sentence.
        parameter: What the slider changes.
        unit: Of it.
        strengths: Those that can be chosen, ascending; one where there is nothing to choose.
        usual: The one that is shown first.
        apply: Wave, strength and seed to the changed wave.
    """

    name: str
    about: str
    parameter: str
    unit: str
    strengths: tuple[float, ...]
    usual: float
    apply: Callable[[Wave, float, int], Wave]

    def words(self, strength: float) -> str:
        """A strength with its unit: ``SNR 10 dB``."""
        return f"{self.parameter} {strength:g} {self.unit}".strip() if len(self.strengths) > 1 else self.parameter


def _steps(low: float, high: float, step: float) -> tuple[float, ...]:
    return tuple(round(low + i * step, 3) for i in range(round((high - low) / step) + 1))


EFFECTS = (
    Effect("speed", "Played faster or slower, so pitch and formants move too.", "factor", "", _steps(0.7, 1.4, 0.05), 1.1,
           lambda wave, x, seed: effects.speed(wave, x)),
    Effect("room", "A simulated room, by its measured reverberation time.", "RT60", "s", _steps(0.1, 1.5, 0.1), 0.6,
           lambda wave, x, seed: effects.room(wave, effects.make_room(seed, 0, x, x).rir_N)),
    Effect("noise", "White Gaussian noise at an exact SNR over active speech.", "SNR", "dB", _steps(-5, 40, 1), 10,
           lambda wave, x, seed: effects.noise(wave, x, seed)),
    Effect("gain", "Another level; a player clips what passes full scale.", "gain", "dB", _steps(-30, 30, 1), -12,
           lambda wave, x, seed: effects.gain(wave, x)),
    Effect("clipping", "What lies just below the peak is cut off, as by an input set too high.", "below the peak", "dB",
           _steps(0, 30, 1), 12, lambda wave, x, seed: effects.clip(wave, x)),
    Effect("codec: mp3", "Encoded and decoded by LAME.", "bitrate", "kbit/s", (8, 16, 24, 32, 48, 64, 128), 16,
           lambda wave, x, seed: effects.code(wave, "mp3", round(1000 * x))),
    Effect("codec: opus", "Encoded and decoded by Opus.", "bitrate", "kbit/s", (6, 8, 12, 16, 24, 32, 64), 8,
           lambda wave, x, seed: effects.code(wave, "opus", round(1000 * x))),
    Effect("codec: telephone", "Resampled to 8 kHz, G.711 (mu-law), and back.", "8 kHz, G.711", "", (0,), 0,
           lambda wave, x, seed: effects.code(wave, "telephone")),
)  # fmt: skip


def babble(noise_N: Wave) -> Effect:
    """The effect that adds a recording: other people, traffic, music.

    Args:
        noise_N: 16 kHz samples.
    """
    return Effect("background", "A recording added at an exact SNR over active speech.", "SNR", "dB", _steps(-5, 40, 1), 10,
                  lambda wave, x, seed: effects.background(wave, noise_N, x))  # fmt: skip


def pick(corpus: Corpus, clip: str = "") -> Any:
    """A clip's cut by its id.

    Args:
        corpus: Where it is looked for, in all splits.
        clip: Its id; empty takes the test clip that is nearest to four seconds.

    Raises:
        InputError: if the corpus has no such clip.
    """
    if not clip:
        return min(corpus.cuts["test"], key=lambda cut: (abs(cut.duration - USUAL), cut.id))
    known = {cut.id: cut for cuts in corpus.cuts.values() for cut in cuts}
    if clip not in known:
        raise InputError(f"{corpus.name} has no such clip.", got=clip, do=did_you_mean(clip, known))
    return known[clip]


def log_mel(wave_N: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Whisper's log-mel of a clip, (M, T), in a window as long as the clip.

    Raises:
        InputError: as for :func:`speechlab.audio.check`.
    """
    wave = audio.check(wave_N)
    window = max(len(wave) / SAMPLE_RATE, 2 / FRAMES_PER_SECOND)
    with torch.inference_mode():
        mel_MT: npt.NDArray[np.float32] = _front()(torch.tensor(wave)[None], window)[0].numpy()
    return mel_MT


def masked(wave_N: npt.ArrayLike, augmenter: Augmenter, clip: str, epoch: int) -> npt.NDArray[np.float32]:
    """The log-mel of what training hears of a clip in an epoch, with the masks that SpecAugment draws for it, (M, T).

    Raises:
        InputError: as for :class:`speechlab.augment.Augmenter`.
    """
    mel_MT = torch.tensor(log_mel(augmenter(audio.check(wave_N), clip, epoch)))
    hidden: npt.NDArray[np.float32] = mask(mel_MT[None], [augmenter.masks(clip, epoch, mel_MT.shape[1])])[0].numpy()
    return hidden


def epochs_html(wave_N: Wave, augmenter: Augmenter, clip: str, epochs: int) -> Html:
    """What training hears of a clip in its first epochs: a row each, with the draws in words and a player.

    Args:
        wave_N: 16 kHz samples.
        augmenter: As training has it.
        clip: Its id, which decides the draws together with the epoch.
        epochs: How many.

    Raises:
        InputError: as for :class:`speechlab.augment.Augmenter`.
    """
    rows = []
    for epoch in range(epochs):
        story = "; ".join(f"{name} {words}" for name, words in augmenter.story(clip, epoch).items())
        rows.append({"epoch": epoch + 1, "drawn": story or "left as it is", "heard": _sound(augmenter(wave_N, clip, epoch), "")})
    return table_html(pd.DataFrame(rows, columns=["epoch", "drawn", "heard"], dtype=object))  # pandas would make plain text of Html


class Listen(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """A clip's bench: ``Listen(wave_N)`` as a cell's last line has sliders, ``.static()`` shows each effect once.

    Args:
        wave_N: 16 kHz samples.
        text: What is said.
        name: What to call the clip.
        seed: Of noise and rooms.
        shown: Which augmentations, of :data:`EFFECTS` and :func:`babble`.

    Raises:
        InputError: if the clip is longer than a minute, or as for :func:`speechlab.audio.check`.
    """

    def __init__(
        self, wave_N: npt.ArrayLike, text: str = "", name: str = "clip", seed: int = 1, shown: Sequence[Effect] = EFFECTS, **params: Any
    ) -> None:
        super().__init__(**params)
        self.wave_N = audio.check(wave_N)
        seconds = len(self.wave_N) / SAMPLE_RATE
        if seconds > LONGEST:
            raise InputError("A clip is too long for the bench.", got=f"{seconds:.1f} s", expected=f"at most {LONGEST:g} s",
                             do="listen to a part of it")  # fmt: skip
        self.text, self.clip, self.seed, self.shown = text, name, seed, tuple(shown)

    def __panel__(self) -> pn.viewable.Viewable:
        return self.panel()

    def panel(self) -> pn.Column:
        """The clip, and every effect beside it with a slider that changes its strength."""
        return self._page([_Card(self, effect, live=True) for effect in self.shown])

    def static(self) -> pn.Column:
        """The same at each effect's usual strength, without sliders: what a headless notebook ends with."""
        return self._page([_Card(self, effect, live=False) for effect in self.shown])

    def _page(self, cards: list[_Card]) -> pn.Column:
        head = Html("<h3>{}</h3><p>{}</p>{}").format(self.clip, self.text, player_html(audio.encode_mp3(self.wave_N)))
        wave = _pane(hv.render(plots.waveform(self.wave_N, vad.speech(self.wave_N), "Waveform and speech"), backend="bokeh"))
        mel = _pane(hv.render(_picture(self.wave_N, "Log-mel"), backend="bokeh"))
        return pn.Column(_text(head), wave, mel, *(card.layout for card in cards), sizing_mode="stretch_width", name="listen")


class _Card:
    """One effect beside the original."""

    def __init__(self, bench: Listen, effect: Effect, live: bool) -> None:
        self._bench, self._effect = bench, effect
        self._player = _text(Html(""))
        self._figure = hv.render(_picture(bench.wave_N, effect.name), backend="bokeh")
        (self._source,) = self._figure.select({"type": ColumnDataSource})
        original = hv.render(_picture(bench.wave_N, "original"), backend="bokeh")
        before = pn.Column(_pane(original), _text(_sound(bench.wave_N, "original")), sizing_mode="stretch_width")
        after = pn.Column(_pane(self._figure), self._player, sizing_mode="stretch_width")
        parts: list[Any] = [_text(Html("<h3>{}</h3><p>{}</p>").format(effect.name, effect.about))]
        self.slider = None
        if live and len(effect.strengths) > 1:
            options = {f"{strength:g} {effect.unit}".strip(): strength for strength in effect.strengths}
            self.slider = pn.widgets.DiscreteSlider(label=effect.parameter, options=options, value=effect.usual, width=320)
            pn.bind(self.show, self.slider.param.value_throttled, watch=True)
            parts.append(self.slider)
        self.layout = pn.Column(
            *parts, pn.Column(before, after, sizing_mode="stretch_width", styles=GRID), sizing_mode="stretch_width", name=effect.name
        )
        self.show(effect.usual)

    def show(self, strength: float) -> None:
        """Apply the effect at a strength and put the result where the last one stood."""
        wave_N = self._effect.apply(self._bench.wave_N, strength, self._bench.seed)
        made = hv.render(_picture(wave_N, self._effect.name), backend="bokeh")
        (source,) = made.select({"type": ColumnDataSource})
        self._source.data = dict(source.data)
        self._figure.x_range.end = len(wave_N) / SAMPLE_RATE
        self._player.value = framed(_sound(wave_N, self._effect.words(strength)))


def _sound(wave_N: Wave, words: str) -> Html:
    peak = float(np.abs(wave_N).max())
    level = f"peak {20 * math.log10(peak):+.1f} dBFS" if peak else "silence"
    level += ", clipped by the player" if peak > 1 else ""
    line = " · ".join(filter(None, (words, f"{len(wave_N) / SAMPLE_RATE:.2f} s", level)))
    return Html('{}<p class="faint">{}</p>').format(player_html(audio.encode_mp3(wave_N)), line)


def _picture(wave_N: Wave, title: str) -> Any:
    return plots.spectrogram(log_mel(wave_N), len(wave_N) / SAMPLE_RATE, title)


def _text(body: Html) -> pn.widgets.StaticText:
    return pn.widgets.StaticText(value=framed(body), stylesheets=[BENCH_CSS], sizing_mode="stretch_width", margin=(2, 0))


def _pane(figure: Any) -> pn.pane.Bokeh:
    return pn.pane.Bokeh(figure, sizing_mode="stretch_width", margin=0)


@lru_cache(maxsize=1)
def _front() -> LogMel:
    return LogMel()
