"""Two small pieces of a page that Panel has not: a microphone, and a player whose pictures and words follow the sound.

Notable: the microphone is decoded by the browser and comes as WAV at 16 kHz, so whatever a browser records in can be read. All text
is set as text (``textContent``), never as markup.

Not covered: browsers without MediaRecorder; recordings over :data:`MOST`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import param
from panel.custom import JSComponent

from speechlab import listen, thumbnails
from speechlab.audio import Wave, encode_mp3
from speechlab.passages import Passage
from speechlab.units import SAMPLE_RATE, Seconds

TEMPLATES = Path(__file__).parent / "templates"
MOST: Seconds = 60.0  # a recording by microphone, which then ends by itself
PICTURED: Seconds = 1800.0  # longer, and the log-mel is left out


class Microphone(JSComponent):  # type: ignore[misc]  # panel's types are not read
    """A button that records; what was recorded comes as WAV in base64.

    Attributes:
        wav: The last recording.
        state: In words, for the reader.
    """

    wav = param.String("")
    state = param.String("")
    most = param.Number(MOST)
    rate = param.Integer(SAMPLE_RATE)

    _stylesheets: ClassVar = [(TEMPLATES / "microphone.css").read_text("utf-8")]
    _esm = (TEMPLATES / "microphone.js").read_text("utf-8")


class Player(JSComponent):  # type: ignore[misc]
    """A clip to hear, with its waveform and log-mel under a cursor, and the words of each system, which light up as they are said.

    Attributes:
        mp3: The sound, in base64.
        wave: Picture of the waveform, SVG in base64.
        mel: Picture of the log-mel, PNG in base64; empty for none.
        seconds: Duration.
        rows: For each system ``[title, [[text, begin, end, confidence or null], …]]``.
    """

    mp3 = param.String("")
    wave = param.String("")
    mel = param.String("")
    seconds = param.Number(0.0)
    rows = param.List([])

    _stylesheets: ClassVar = [(TEMPLATES / "player.css").read_text("utf-8")]
    _esm = (TEMPLATES / "player.js").read_text("utf-8")

    @classmethod
    def of(cls, wave_N: Wave, heard: Sequence[tuple[str, Sequence[Passage]]]) -> Player:
        """A player for a clip and what was heard in it.

        Args:
            wave_N: 16 kHz samples.
            heard: Title and passages of each system.
        """
        return cls(**picture(wave_N), rows=rows(heard), sizing_mode="stretch_width")


def picture(wave_N: Wave) -> dict[str, object]:
    """What a :class:`Player` shows and plays of a clip.

    Args:
        wave_N: 16 kHz samples.
    """
    seconds = len(wave_N) / SAMPLE_RATE
    mel = thumbnails.mel_png(listen.log_mel(wave_N)) if seconds <= PICTURED else b""
    kept = {"mp3": encode_mp3(wave_N), "wave": thumbnails.wave_svg(wave_N).encode(), "mel": mel}
    return {**{name: base64.b64encode(data).decode() for name, data in kept.items()}, "seconds": seconds}


def rows(heard: Sequence[tuple[str, Sequence[Passage]]]) -> list[list[object]]:
    """Title and words of each system, as :class:`Player` takes them."""
    return [[title, [[w.text, w.begin, w.end, w.confidence] for passage in passages for w in passage.words]] for title, passages in heard]
