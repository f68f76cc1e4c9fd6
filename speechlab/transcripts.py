"""Which transcripts to doubt: clips ranked by how badly text and speech disagree.

Notable: three scores. ``cer`` is the character error rate of what a model heard against the transcript. ``nats`` asks the
model itself: how much likelier it finds its own hypothesis than the transcript, both forced upon it (a logarithm of the
likelihood ratio); ``margin`` is the same per token. A weak model that misheard a right transcript still finds that
transcript nearly as likely; a transcript that is not what was said costs it dearly. Case, apostrophes and final
punctuation are matters of style: each text may appear as it likes best. What people decide about them is
:mod:`speechlab.corpora.decisions`.

Not covered: where in a clip the texts part (``speechlab.scoring.align`` shows it), clips over 30 s, wrong speakers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch

from speechlab import batches, corpora, decoding
from speechlab.errors import InputError, did_you_mean
from speechlab.scoring import score
from speechlab.text import Normaliser, normaliser_for
from speechlab.units import Seconds

SCORES = ("nats", "margin", "cer")


def check(
    model: Any,
    cuts: Sequence[Any],
    language: str,
    *,
    seconds: Seconds = decoding.BATCH,
    precision: str = "bf16",
    device: str = "cpu",
    by: str = "nats",
    heard: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Rank clips by how badly transcript and speech disagree.

    Args:
        model: A :class:`speechlab.models.Model`; one without ``likelihoods`` leaves the ranking to the error rate.
        cuts: lhotse cuts of at most 30 s.
        language: BCP-47; English is normalised by ``english``, others by ``basic``.
        seconds: Audio heard together.
        precision: ``fp32`` or ``bf16`` autocast.
        device: Where the model is.
        by: What ranks: ``nats``, ``margin`` or ``cer``.
        heard: Told after each batch how many clips are done.

    Returns:
        A row a clip, the most doubtful first: ``rank`` from 1, ``id``, ``duration`` in seconds, ``reference``,
        ``hypothesis``, ``ended``, false where the hypothesis broke off, ``nats`` and ``margin`` in nats a token (nan without
        likelihoods, inf for a text too long to have been said) and ``cer`` (inf where the transcript has no characters
        but something was heard).

    Raises:
        InputError: if there are no cuts, or a clip cannot be read.
    """
    if by not in SCORES:
        raise InputError("Transcripts cannot be ranked by that.", got=by, do=did_you_mean(by, SCORES))
    if not len(cuts):
        raise InputError("There are no transcripts to check.", got="0 clips", expected="at least one", do="check the split and its limit")
    by_id = {cut.id: cut for cut in cuts}
    rows: list[dict[str, Any]] = []
    rules = normaliser_for(language)
    for part in decoding.decode(model, cuts, seconds=seconds, precision=precision, device=device):
        if broken := [d.problem for d in part if d.problem]:
            raise InputError(broken[0])
        texts = [(d.reference, d.hypothesis) for d in part]
        doubts = _doubts(model, [by_id[d.id] for d in part], texts, precision, device)
        rows += [{**asdict(d), "nats": nats, "margin": margin} for d, (nats, margin) in zip(part, doubts, strict=True)]
        if heard:
            heard(len(rows))
    table = pd.DataFrame(rows)[["id", "duration", "reference", "hypothesis", "ended", "nats", "margin"]]
    return ranked(table.assign(cer=character_errors(table["reference"].tolist(), table["hypothesis"].tolist(), rules)), by)


def character_errors(references: Sequence[str], hypotheses: Sequence[str], rules: Normaliser) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Each clip's character error rate (U), inf where an empty reference meets a hypothesis."""
    counts = score(references, hypotheses, rules)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = counts.char_errors_U / counts.chars_U
    return np.where(counts.chars_U > 0, rates, np.where(counts.char_errors_U > 0, np.inf, 0.0))


def ranked(table: pd.DataFrame, by: str = "nats") -> pd.DataFrame:
    """The rows of :func:`check` by one of :data:`SCORES`, of equal ones by error rate, then by id; ``rank`` 1 is the most doubtful."""
    ordered = table.drop(columns="rank", errors="ignore").sort_values(
        [by, "cer", "id"], ascending=[False, False, True], na_position="last", ignore_index=True
    )
    ordered.insert(0, "rank", np.arange(1, len(ordered) + 1))
    return ordered


@torch.inference_mode()
def _doubts(model: Any, cuts: list[Any], texts: list[tuple[str, str]], precision: str, device: str) -> list[tuple[float, float]]:
    """By how many nats, and nats a token, the model prefers its hypothesis to the reference, per clip."""
    if not hasattr(model, "likelihoods"):
        return [(math.nan, math.nan)] * len(cuts)
    # in short context, at a tenth of the cost: what is forced upon a model cannot run away
    batch = batches.collate([(cut.id, "", corpora.load_audio(cut)) for cut in cuts]).to(torch.device(device))
    candidates = [[spelling(text) for text in column] for column in zip(*texts, strict=True) for spelling in SPELLINGS]
    training = model.training
    model.eval()
    try:
        with decoding.autocast(device, precision):
            found = model.likelihoods(batch, candidates)
    finally:
        model.train(training)
    n, pairs = len(SPELLINGS), []
    for clip in zip(*found, strict=True):
        (reference, r), (hypothesis, h) = max(clip[:n]), max(clip[n:])
        possible = math.isfinite(reference)
        pairs.append((hypothesis - reference, hypothesis / h - reference / r) if possible else (math.inf, math.inf))
    return pairs


QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb", "''" + 5 * '"')  # typographic ones cost a model 10 nats each


def _plain(text: str) -> str:
    return text.strip().translate(QUOTES)


def _sentence(text: str) -> str:
    text = _plain(text)
    return text[:1].upper() + text[1:].rstrip(" .,;:") + "." if text else ""


def _bare(text: str) -> str:
    text = _plain(text).rstrip(" .,;:!?")
    return text[:1].lower() + text[1:]


SPELLINGS: tuple[Callable[[str], str], ...] = (_plain, _sentence, _bare)  # of one text, of which the model's favourite counts
