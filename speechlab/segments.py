"""Long recordings cut at pauses, and their text dealt to the parts by what a model hears in them.

Notable: no forced aligner is needed. Each part is transcribed on its own, the transcript is aligned with all hypotheses
in one go (word edit distance), and a word belongs to the part where its counterpart was heard. The model may err within
a part; at a cut it may not: where the words around it were not heard on their sides, or a part's text and hypothesis
disagree too much, the recording is refused, so that no clip is learnt from with another clip's words.

Not covered: recordings without pauses, several speakers at once, scripts without spaces between words.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from speechlab import batches, models
from speechlab.audio import Wave
from speechlab.corpora.check import Part, Splitter
from speechlab.errors import InputError
from speechlab.models import weights
from speechlab.scoring import align
from speechlab.text import Normaliser, normaliser
from speechlab.units import SAMPLE_RATE, Seconds
from speechlab.vad import Span, pauses

SHORTEST_PAUSE: Seconds = 0.2  # that may be cut at
ALIKE = 0.6  # similarity of letters from which a word counts as misheard, not as another
MOST_WRONG = 0.5  # share of a part's words that may differ from what was heard in it


def splitter(name: str, language: str) -> Callable[[], Splitter]:
    """What makes a splitter in whichever process it is wanted.

    Args:
        name: Whisper weights, as a config names them.
        language: BCP-47.

    Raises:
        InputError: if the weights cannot be had, or do not know the language.
    """
    found = weights.resolve("whisper", name)
    return partial(_load, str(found.path), language)


def _load(folder: str, language: str) -> Splitter:
    return partial(split, models.load("whisper", folder, language).eval())


def split(model: Any, wave_N: Wave, text: str, language: str, spans: list[Span], limit: Seconds) -> list[Part]:
    """Cut a recording into parts and its text with it.

    Args:
        model: A :class:`speechlab.models.Model`.
        wave_N: 16 kHz samples.
        text: Of the whole.
        language: BCP-47.
        spans: Speech by VAD.
        limit: The longest part, in seconds.

    Returns:
        Begin and end of each part in seconds, and its words as they were written; the words add up to the text's.

    Raises:
        InputError: if there is no pause to cut at, or the model does not hear the words on their sides of the cuts.
    """
    seconds = len(wave_N) / SAMPLE_RATE
    edges = cuts(spans, seconds, limit)
    bounds = list(pairwise(edges))
    waves = [wave_N[round(a * SAMPLE_RATE) : round(b * SAMPLE_RATE)] for a, b in bounds]
    heard = [model.transcribe(batches.collate([("", "", wave)]), context="full")[0].text for wave in waves]
    texts = deal(text, heard, normaliser("basic"))  # word by word, so not the rules that join numbers
    return [(a, b, said) for (a, b), said in zip(bounds, texts, strict=True)]


def cuts(spans: list[Span], seconds: Seconds, limit: Seconds) -> list[Seconds]:
    """Where to cut: in the middle of pauses, each part as long as the limit allows and at least a third of it.

    Args:
        spans: Speech by VAD.
        seconds: Of the whole.
        limit: The longest part.

    Returns:
        The edges of the parts, 0 and the end included.

    Raises:
        InputError: if a stretch longer than the limit has no pause.
    """
    middles = [((a + b) / 2, b - a) for a, b in pauses(spans, seconds) if b - a >= SHORTEST_PAUSE and a > 0 and b < seconds]
    edges = [0.0]
    while seconds - edges[-1] > limit:
        within = [(length, at) for at, length in middles if edges[-1] + limit / 3 <= at <= edges[-1] + limit]
        if not within:
            raise InputError("there is no pause to cut at", got=f"speech from {edges[-1]:.1f} s on",
                             expected=f"a pause of {SHORTEST_PAUSE:g} s within {limit:g} s")  # fmt: skip
        edges.append(max(within)[1])
    return [*edges, seconds]


def deal(text: str, heard: list[str], rules: Normaliser) -> list[str]:
    """A text's words dealt to parts by what was heard in each.

    Args:
        text: Words as they are written, parted by spaces.
        heard: What a model heard in each part.
        rules: Both are compared under it.

    Returns:
        A text for each part.

    Raises:
        InputError: if the words at a cut, or too many within a part, were not heard.
    """
    words = text.split()
    said = [(i, word) for i, written in enumerate(words) for word in rules.words(written)]
    places = [(part, word) for part, hypothesis in enumerate(heard) for word in rules.words(hypothesis)]
    found: list[int | None] = [None] * len(words)
    hits = [0] * len(heard)
    s = h = 0
    for op, word, other in align([word for _, word in said], [word for _, word in places]):
        if op == "hit" or (op == "sub" and SequenceMatcher(None, word, other).ratio() >= ALIKE):
            hits[places[h][0]] += op == "hit"
            if found[said[s][0]] is None:
                found[said[s][0]] = places[h][0]
        s, h = s + (op != "ins"), h + (op != "del")
    known = [i for i, part in enumerate(found) if part is not None]
    if not known:
        raise InputError("none of the words were heard", got=" / ".join(heard)[:200], expected=text[:200])
    for before, after in pairwise(known):
        if found[before] != found[after] and after - before > 1:
            unheard = " ".join(words[before + 1 : after])
            raise InputError(
                "the words at a cut were not heard on either side of it", got=unheard[:200], expected="words that the model hears"
            )
    parts = np.interp(range(len(words)), known, [found[i] for i in known]).round().astype(int)  # type: ignore[arg-type]
    texts = [" ".join(words[i] for i in np.flatnonzero(parts == part)) for part in range(len(heard))]
    for part, (own, hypothesis) in enumerate(zip(texts, heard, strict=True)):
        most = max(len(rules.words(own)), len(rules.words(hypothesis)))
        if not own or hits[part] < (1 - MOST_WRONG) * most:
            raise InputError(
                "a part's words are not what was heard in it", got=hypothesis[:200] or "nothing", expected=own[:200] or "words"
            )
    return texts
