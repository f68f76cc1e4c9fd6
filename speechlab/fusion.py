"""A language model's weight, found by trying: what a CTC model wrote is kept, and decoded again for each weight.

The model runs once. A clip costs a beam of 50 some milliseconds, so a grid over a small set takes seconds, and a slider follows.
What is kept lies in memory as float16, which moves a log-probability by 0.05 % at most of what it is: 30 labels at 25 frames
take 1.5 kB a second of speech, 5,000 pieces 250 kB. More than :data:`LIMIT` is refused.

The lowest WER of a grid flatters: it was chosen on these very clips. Choose on development clips, report on others.

Not covered: searches for weights other than on a grid; emissions on disk.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from speechlab import ngram
from speechlab.batches import Batch
from speechlab.config import SearchConfig
from speechlab.decoding import Decoded, decode
from speechlab.errors import InputError
from speechlab.models import Hypothesis, ctc
from speechlab.models.beam import Beam, Search, log_probs, sentences
from speechlab.models.ctc import LogProbs
from speechlab.progress import track
from speechlab.scoring import Scores, score
from speechlab.text import Normaliser
from speechlab.units import Bytes

LIMIT: Bytes = 2**30


@dataclass(frozen=True, eq=False)
class Emissions:
    """What a CTC model wrote of some clips, before anything is searched in it.

    Attributes:
        clips: Each with its reference, its greedy hypothesis and the seconds that the model took.
        log_probs: Of each clip (F, V), float16, natural logarithms.
    """

    clips: tuple[Decoded, ...] = field(repr=False)
    log_probs: tuple[LogProbs, ...] = field(repr=False)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def greedy(self, normaliser: Normaliser) -> Scores:
        """The model alone, without search and language model."""
        return self.score([clip.hypothesis for clip in self.clips], normaliser)

    def score(self, hypotheses: Sequence[str], normaliser: Normaliser) -> Scores:
        """Hypotheses in the clips' order against what was said."""
        return score([clip.reference for clip in self.clips], hypotheses, normaliser, [clip.speaker for clip in self.clips])


def emissions(model: Any, cuts: Sequence[Any], limit: Bytes = LIMIT, **how: Any) -> Emissions:
    """Run a CTC model over clips and keep what it writes.

    Args:
        model: Wav2Vec2 with a vocabulary, or a Conformer.
        cuts: lhotse cuts.
        limit: The most memory that may be kept.
        how: As for :func:`speechlab.decoding.decode`: seconds, precision, device.

    Returns:
        Clips from short to long, without those that cannot be read.

    Raises:
        InputError: if the model is not one of CTC, or it does not fit into the limit.
    """
    keeper = _Keeper(model, limit)
    decoded = itertools.chain.from_iterable(decode(keeper, cuts, **how))
    clips = tuple(clip for clip in track(decoded, "emissions", len(cuts)) if not clip.problem)
    return Emissions(clips, tuple(keeper.kept))


def searcher(vocabulary: ctc.Vocabulary, config: SearchConfig, texts: Sequence[str]) -> ctc.Searcher:
    """What a config's search makes of a clip's log-probabilities.

    Args:
        vocabulary: Of the model.
        config: The search.
        texts: Training transcripts, which a language model is counted from where the config names none.

    Raises:
        InputError: if the language model cannot be used with this vocabulary.
    """
    if config.file:
        language_model = ngram.read(config.file, words=dict.fromkeys(word for text in sentences(texts) for word in text.split()))
    else:
        language_model = ngram.train(sentences(texts, None if config.lexicon else vocabulary), config.order)
    beam, how = Beam(vocabulary, language_model, config.lexicon), Search(config.beam, config.lm_weight, config.word_score)

    def found(log_probs_FV: LogProbs) -> tuple[str, float]:
        heard = beam.decode(log_probs_FV, how)
        return heard.text, heard.confidence

    return found


def identity(config: SearchConfig, texts: Sequence[str]) -> str:
    """What identifies a search, to keep beside a WER: its settings, and a hash of the language model's file or texts.

    Raises:
        InputError: if the file cannot be read.
    """
    source = ngram.read(config.file).sha256 if config.file else hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()
    weights = f"beam {config.beam}, lm_weight {config.lm_weight:g}, word_score {config.word_score:g}"
    return f"{weights}, {config.order}-grams of {'words' if config.lexicon else 'labels'}, {source[:12]}"


def scored(kept: Emissions, beam: Beam, search: Search, normaliser: Normaliser) -> Scores:
    """The word errors of one search over all clips.

    Args:
        kept: Clips.
        beam: Language model and vocabulary.
        search: Weights and limits.
        normaliser: Of the WER.
    """
    return kept.score([beam.decode(log_probs_FV, search).text for log_probs_FV in kept.log_probs], normaliser)


def sweep(
    kept: Emissions,
    beam: Beam,
    normaliser: Normaliser,
    lm_weights: Sequence[float],
    word_scores: Sequence[float] = (0.0,),
    search: Search = Search(),  # noqa: B008 - frozen
) -> pd.DataFrame:
    """Word errors for every pair of weights.

    Args:
        kept: Clips.
        beam: Language model and vocabulary.
        normaliser: Of the WER.
        lm_weights: Of the language model.
        word_scores: Only 0 without a lexicon.
        search: The other settings.

    Returns:
        One row a pair: lm_weight, word_score, wer, low, high (95 % over utterances: these speakers) and cer as fractions,
        substitutions, deletions, insertions, and seconds, what a clip took on average to be searched and scored.

    Raises:
        InputError: if a list is empty, or a weight cannot be used.
    """
    pairs = list(itertools.product(dict.fromkeys(lm_weights), dict.fromkeys(word_scores)))
    if not pairs or not len(kept):
        got = f"{len(lm_weights)} lm_weights, {len(word_scores)} word_scores, {len(kept)} clips"
        raise InputError("There is nothing to sweep over.", got=got, expected="at least one of each")
    searches = [replace(search, lm_weight=lm_weight, word_score=word_score) for lm_weight, word_score in pairs]
    rows = []
    for each in track(searches, "weights", len(searches)):
        began = time.perf_counter()
        scores = scored(kept, beam, each, normaliser)
        seconds = (time.perf_counter() - began) / len(kept)
        interval = scores.interval()
        rates = {"wer": scores.wer, "low": interval.low, "high": interval.high, "cer": scores.cer}
        counts = {"substitutions": scores.substitutions, "deletions": scores.deletions, "insertions": scores.insertions}
        rows.append({"lm_weight": each.lm_weight, "word_score": each.word_score, **rates, **counts, "seconds": seconds})
    return pd.DataFrame(rows)


def best(table: pd.DataFrame) -> Any:
    """The row of a sweep with the lowest WER; of several the one that leans least on weights."""
    sizes = table.assign(word_size=table.word_score.abs())
    return table.loc[sizes.sort_values(["wer", "lm_weight", "word_size"], kind="stable").index[0]]


class _Keeper:
    """A model as the decoder sees it, whose log-probabilities stay behind.

    Args:
        model: A CTC model.
        limit: The most memory that may be kept.
    """

    def __init__(self, model: Any, limit: Bytes) -> None:
        if not isinstance(getattr(model, "vocabulary", None), ctc.Vocabulary):
            raise InputError(
                "Only what a CTC model writes can be searched with a language model.", got=type(model).__name__,
                expected="wav2vec2 or conformer, trained on transcripts",
            )  # fmt: skip
        self._model, self._limit = model, limit
        self.kept: list[LogProbs] = []
        self.training, self.train, self.eval = model.training, model.train, model.eval

    @torch.inference_mode()
    def transcribe(self, batch: Batch, *, context: str | None = None) -> list[Hypothesis]:
        """The batch's greedy transcripts; a CTC model has one context."""
        logits_BFV, frames = self._model.logits(batch)
        self.kept += [clip_FV.astype(np.float16) for clip_FV in log_probs(logits_BFV, frames)]
        if (size := sum(clip_FV.nbytes for clip_FV in self.kept)) > self._limit:
            raise InputError(
                "There are too many clips to keep what the model writes.", got=f"{size:,} bytes for the first {len(self.kept)} clips",
                expected=f"at most {self._limit:,}", do="take fewer or shorter ones: a few hundred tell weights apart",
            )  # fmt: skip
        return ctc.transcripts(logits_BFV, frames, batch.seconds, self._model.vocabulary)
