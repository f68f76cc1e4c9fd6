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
from speechlab.models import Hypothesis
from speechlab.plan import context_for
from speechlab.units import SAMPLE_RATE, Seconds
from speechlab.vad import Span

LONGEST: Seconds = 20.0  # of a passage
PAUSE: Seconds = 1.0  # a longer one always ends a passage
AROUND: Seconds = 0.2  # heard before and behind a passage, where nothing else is said
TOGETHER: Seconds = 120.0  # of audio in a batch, padding included
GRID: Seconds = 0.5  # steps of the context that words are timed in, a clip's length and …
MARGIN: Seconds = 0.5  # … silence behind it
CUE: Seconds = 6.0  # that a subtitle stands at most, and …
LINE = 42  # … characters in each of its two lines: broadcasters' usual limits
Piece = tuple[Span, Wave]  # begin and end in seconds of the recording, and the samples between them


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
    for group in _groups(cut(wave_N)):
        for passage in heard(model, pieces(wave_N, group), precision=precision, device=device):
            yield passage, passage.end


def cut(wave_N: Wave) -> list[Span]:
    """Where a recording's passages begin and end, in seconds, ascending; none where nobody speaks.

    Raises:
        InputError: if the waveform is none.
    """
    return bounds(vad.speech(wave_N), wave_N)


def pieces(wave_N: Wave, spans: Sequence[Span]) -> list[Piece]:
    """Stretches of a recording with their samples, which are not copied."""
    return [(span, wave_N[round(span[0] * SAMPLE_RATE) : round(span[1] * SAMPLE_RATE)]) for span in spans]


def heard(model: Any, batch: Sequence[Piece], *, precision: str = "bf16", device: str = "cpu") -> list[Passage]:
    """Transcribe a batch of passages, of one recording or of several: what else is in the batch changes neither words nor times.

    Args:
        model: As for :func:`hear`.
        batch: Passages as :func:`pieces` gives them.
        precision: As for :func:`hear`.
        device: Likewise.

    Returns:
        As they were given, each in the time of its recording.
    """
    with autocast(device, precision):
        found = model.transcribe(_collated([wave for _, wave in batch]).to(torch.device(device)))
    times: list[Any] = [None] * len(batch)
    # where a word is heard moves by hundredths of a second with the length of what the encoder hears: each in its own, not the batch's
    contexts = [context_for(math.ceil((len(wave) / SAMPLE_RATE + MARGIN) / GRID) * GRID, 0) for _, wave in batch]
    for context in sorted(set(contexts)):
        rows = [i for i, own in enumerate(contexts) if own == context]
        group = _collated([batch[i][1] for i in rows], context).to(torch.device(device))
        for i, own in zip(rows, model.times(group, [found[i].text for i in rows]), strict=True):
            times[i] = own
    return [_passage(span, hypothesis, own) for (span, _), hypothesis, own in zip(batch, found, times, strict=True)]


def _collated(waves: Sequence[Wave], context: Seconds | None = None) -> batches.Batch:
    return batches.collate([(str(i), "", wave) for i, wave in enumerate(waves)], context)


def _passage(span: Span, hypothesis: Hypothesis, times: Sequence[Span]) -> Passage:
    begin, end = span
    sure = hypothesis.confidences or [None] * len(times)
    words = zip(hypothesis.text.split(), times, sure, strict=True)
    found = tuple(Word(text, begin + a, min(begin + b, end), p) for text, (a, b), p in words)
    return Passage(begin, end, found, hypothesis.ended)


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
