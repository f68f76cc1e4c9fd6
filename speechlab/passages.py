"""A recording of any length heard passage by passage, with the time of every word; and as text, subtitles or JSON.

Speech by VAD is gathered into passages that end at pauses; a stretch without a pause is cut where it is quietest. What is not speech is
not given to the model, so no words are invented in it. The first passage is heard alone, so that there is something to read soon, the next
ones in batches.

Not covered: who speaks; a recording that does not fit into memory (an hour takes 0.23 GB).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import torch

from speechlab import batches, vad
from speechlab.audio import Wave
from speechlab.decoding import autocast
from speechlab.units import SAMPLE_RATE, Seconds
from speechlab.vad import Span

LONGEST: Seconds = 20.0  # of a passage
PAUSE: Seconds = 1.0  # a longer one always ends a passage
AROUND: Seconds = 0.2  # heard before and behind a passage, where nothing else is said
TOGETHER: Seconds = 120.0  # of audio in a batch, padding included
CUE: Seconds = 6.0  # that a subtitle stands at most, and …
LINE = 42  # … characters in each of its two lines: broadcasters' usual limits


@dataclass(frozen=True)
class Word:
    """A word as it was heard.

    Attributes:
        text: As the model writes it.
        begin: Of the word, in seconds of the recording.
        end: Likewise.
        confidence: How sure the model is, as a probability; None if its family does not say.
    """

    text: str
    begin: Seconds
    end: Seconds
    confidence: float | None = None


@dataclass(frozen=True)
class Passage:
    """Words between two pauses.

    Attributes:
        begin: Of what was heard, in seconds of the recording.
        end: Likewise.
        words: In order.
        ended: Whether decoding came to its end; if not, the text was cut.
    """

    begin: Seconds
    end: Seconds
    words: tuple[Word, ...]
    ended: bool = True

    @property
    def text(self) -> str:
        """The words, with spaces."""
        return " ".join(word.text for word in self.words)


def hear(model: Any, wave_N: Wave, *, precision: str = "bf16", device: str = "cpu") -> Iterator[tuple[Passage, Seconds]]:
    """Transcribe a recording as it comes.

    Args:
        model: A :class:`speechlab.models.Model` in evaluation mode, on the device.
        wave_N: 16 kHz samples.
        precision: ``fp32``, or ``bf16`` or ``fp16`` autocast.
        device: Where the model is.

    Yields:
        Passages in order, each with the seconds of the recording that are done with it; none where nobody speaks.

    Raises:
        InputError: if the waveform is none.
    """
    spans = bounds(vad.speech(wave_N), wave_N)
    for group in _groups(spans):
        waves = [wave_N[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] for a, b in group]
        batch = batches.collate([(str(i), "", wave) for i, wave in enumerate(waves)]).to(torch.device(device))
        with autocast(device, precision):
            heard = model.transcribe(batch)
        times = model.times(batch, [h.text for h in heard])
        for (begin, end), hypothesis, own in zip(group, heard, times, strict=True):
            sure = hypothesis.confidences or [None] * len(own)
            words = zip(hypothesis.text.split(), own, sure, strict=True)
            found = tuple(Word(text, begin + a, min(begin + b, end), p) for text, (a, b), p in words)
            yield Passage(begin, end, found, hypothesis.ended), end


def bounds(spans: Sequence[Span], wave_N: Wave, longest: Seconds = LONGEST) -> list[Span]:
    """Where passages begin and end.

    Args:
        spans: Of speech, ascending.
        wave_N: 16 kHz samples, which tell where it is quiet.
        longest: Of a passage.

    Returns:
        Ascending, none over another, all speech in one of them.
    """
    parts = [part for span in spans for part in _short(span, wave_N, longest)]
    passages: list[Span] = []
    for begin, end in parts:
        if passages and end - passages[-1][0] <= longest and begin - passages[-1][1] <= PAUSE:
            passages[-1] = passages[-1][0], end
        else:
            passages.append((begin, end))
    edges = [0.0, *(edge for passage in passages for edge in passage), len(wave_N) / SAMPLE_RATE]
    room = [max(0.0, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    inner = [gap if i in (0, len(room) - 1) else gap / 2 for i, gap in enumerate(room)]
    return [(a - min(AROUND, inner[i]), b + min(AROUND, inner[i + 1])) for i, (a, b) in enumerate(passages)]


def _short(span: Span, wave_N: Wave, longest: Seconds) -> Iterator[Span]:
    begin, end = span
    while end - begin > longest:
        first, last = (round(t * SAMPLE_RATE) for t in (begin + longest / 2, begin + longest))
        size = SAMPLE_RATE // 20
        frames = wave_N[first : first + (last - first) // size * size].reshape(-1, size)
        at = (first + (int(np.square(frames).mean(1).argmin()) + 0.5) * size) / SAMPLE_RATE
        yield begin, at
        begin = at
    yield begin, end


def _groups(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The first alone, then neighbours that fit into a batch."""
    group: list[Span] = []
    for i, span in enumerate(spans):
        longest = max(b - a for a, b in [*group, span])
        if group and (i == 1 or (len(group) + 1) * longest > TOGETHER):
            yield group
            group = []
        group.append(span)
    if group:
        yield group


# -- what is kept of them ------------------------------------------------------------------------


def txt(passages: Sequence[Passage]) -> str:
    """A line a passage."""
    return "".join(f"{passage.text}\n" for passage in passages if passage.words)


def srt(passages: Sequence[Passage]) -> str:
    """SubRip subtitles; angle brackets, which players take for markup, become others."""
    blocks = [
        f"{i}\n{_clock(begin, ',')} --> {_clock(end, ',')}\n{text.replace('<', '‹').replace('>', '›')}\n"
        for i, (begin, end, text) in enumerate(cues(passages), 1)
    ]
    return "\n".join(blocks)


def vtt(passages: Sequence[Passage]) -> str:
    """WebVTT subtitles (W3C), their text escaped."""
    blocks = [f"{_clock(begin, '.')} --> {_clock(end, '.')}\n{escape(text, quote=False)}\n" for begin, end, text in cues(passages)]
    return "\n".join(["WEBVTT\n", *blocks])


def to_json(passages: Sequence[Passage]) -> str:
    """All that is known: passages, their words, times in seconds to the millisecond, confidences."""
    return json.dumps([_rounded(asdict(passage) | {"text": passage.text}) for passage in passages], ensure_ascii=False, indent=1) + "\n"


FORMATS: dict[str, Callable[[Sequence[Passage]], str]] = {"txt": txt, "srt": srt, "vtt": vtt, "json": to_json}


def cues(passages: Sequence[Passage]) -> list[tuple[Seconds, Seconds, str]]:
    """Begin, end and text of subtitles: two lines at most, ended early by the end of a sentence."""
    found: list[tuple[Seconds, Seconds, str]] = []
    for passage in passages:
        words: list[Word] = []
        for word in passage.words:
            full = words and (len(_lines([*words, word])) > 2 or word.end - words[0].begin > CUE)
            if full or (words and re.search(r"[.?!。]$", words[-1].text)):
                found.append((words[0].begin, words[-1].end, "\n".join(_lines(words))))
                words = []
            words.append(word)
        if words:
            found.append((words[0].begin, words[-1].end, "\n".join(_lines(words))))
    return found


def _lines(words: Sequence[Word]) -> list[str]:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word.text}".strip()
        if lines[-1] and len(longer) > LINE:
            lines.append(word.text)
        else:
            lines[-1] = longer
    return lines


def _clock(seconds: Seconds, point: str) -> str:
    whole = math.floor(1000 * max(0.0, seconds) + 0.5)
    minutes, thousandths = divmod(whole, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{thousandths // 1000:02d}{point}{thousandths % 1000:03d}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value
