"""Word times: the path against all paths, labels at known places, a real clip against faster-whisper and against itself moved."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import corpora, fetch, models
from speechlab.batches import collate
from speechlab.errors import InputError
from speechlab.models import ctc, timing
from speechlab.units import SAMPLE_RATE


def worth(scores_LF: np.ndarray, begins: list[int]) -> float:
    edges = [*begins, scores_LF.shape[1]]
    return sum(scores_LF[i, a:b].sum() for i, (a, b) in enumerate(itertools.pairwise(edges)))


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_no_path_is_worth_more(labels, more, seed):
    scores_LF = np.random.default_rng(seed).normal(size=(labels, labels + more))
    frames = scores_LF.shape[1]
    found = timing.path(scores_LF)
    assert found[0] == 0 and all(a < b for a, b in itertools.pairwise(found)) and found[-1] < frames
    every = ([0, *rest] for rest in itertools.combinations(range(1, frames), labels - 1))
    assert worth(scores_LF, found) == pytest.approx(max(worth(scores_LF, begins) for begins in every))


def test_more_labels_than_frames_share_them():
    assert timing.path(np.zeros((4, 2))) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("pieces", "times"),
    [
        ([" a", "b", " c"], [(0.0, 2.0), (2.0, 3.0)]),
        ([" a", ".", " c", "!"], [(0.0, 1.0), (2.0, 3.0)]),  # it ends before its punctuation
        (["a", "'", "b", "?", "!"], [(0.0, 3.0)]),  # what stands within is said
        ([" -", " a"], [(0.0, 1.0), (1.0, 2.0)]),
    ],
)
def test_pieces_make_words(pieces, times):
    assert timing.of_pieces(range(len(pieces)), len(pieces), pieces, 1.0) == times


def test_what_has_no_pieces_is_dealt_out_by_length():
    assert timing.spread(["ab", "c", "d"], [(1.0, 2.0), (3.0, 5.0)]) == [(1.0, 3.0), (3.0, 4.0), (4.0, 5.0)]
    assert timing.spread([], [(1.0, 2.0)]) == timing.spread(["a"], []) == []


@pytest.fixture
def vocabulary(tmp_path):
    from speechlab.config import VocabularyConfig

    return ctc.make_vocabulary(VocabularyConfig(), ["ab c dd"], tmp_path)


def test_labels_are_where_they_were_heard(vocabulary):
    heard = "__a_b_|_c__|d_d_"  # a character a frame of 0.1 s
    ids = {c: vocabulary.encode([c])[0][0] for c in "abcd"} | {"_": vocabulary.blank, "|": vocabulary.encode(["a b"])[0][1]}
    logits_FV = torch.nn.functional.one_hot(torch.tensor([ids[c] for c in heard]), len(vocabulary)) * 20.0
    (times,) = ctc.times(logits_FV[None], [len(heard)], [len(heard) / 10], vocabulary, ["ab c dd"])
    assert np.array(times) == pytest.approx(np.array([(0.2, 0.5), (0.8, 0.9), (1.2, 1.5)]))
    assert ctc.times(logits_FV[None], [len(heard)], [1.6], vocabulary, [""]) == [[]]
    with pytest.raises(InputError, match="too long to be aligned"):
        ctc.times(logits_FV[None, :5], [5], [0.5], vocabulary, ["ab c dd"])


@pytest.fixture(scope="module")
def real(tiny_en):
    return models.load("whisper", tiny_en, "en").eval()


@pytest.fixture(scope="module")
def spoken(prompts):
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[60::13]
    return [(cut.id, "", corpora.load_audio(cut)) for cut in cuts]


@pytest.mark.slow
def test_words_are_where_faster_whisper_puts_them(real, spoken):
    from faster_whisper import WhisperModel

    (folder,) = (path.parent for path in (fetch.cache() / "wheels").rglob("model.bin") if "meeting" in str(path))
    program = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=2, local_files_only=True)
    batch = collate(spoken)
    texts = [h.text for h in real.transcribe(batch)]
    apart = []
    for text, times, (_, _, wave_N) in zip(texts, real.times(batch, texts), spoken, strict=True):
        segments, _ = program.transcribe(wave_N, language="en", beam_size=1, word_timestamps=True, condition_on_previous_text=False)
        theirs = [word for segment in segments for word in segment.words]
        if [word.word.strip() for word in theirs] == text.split():
            apart += [abs(word.start - begin) for word, (begin, _) in zip(theirs, times, strict=True)][1:]
    assert len(apart) >= 30
    assert np.median(apart) <= 0.02 and np.quantile(apart, 0.9) <= 0.06


@pytest.mark.slow
def test_times_move_with_the_sound(real, spoken):
    silence_N = np.zeros(round(0.7 * SAMPLE_RATE), np.float32)
    later = [(id, text, np.concatenate([silence_N, wave_N])) for id, text, wave_N in spoken]
    texts = [h.text for h in real.transcribe(collate(spoken))]
    first, second = real.times(collate(spoken), texts), real.times(collate(later), texts)
    moved = [b - a for x, y in zip(first, second, strict=True) for (a, _), (b, _) in list(zip(x, y, strict=True))[1:]]
    assert np.median(moved) == pytest.approx(0.7, abs=0.03) and np.mean(np.abs(np.array(moved) - 0.7) < 0.1) > 0.9
    for text, times, (_, _, wave_N) in zip(texts, first, spoken, strict=True):
        assert len(times) == len(text.split())
        assert all(0 <= a <= b <= len(wave_N) / SAMPLE_RATE + 0.02 for a, b in times)
    alone = [real.times(collate([clip]), [text])[0] for clip, text in zip(spoken, texts, strict=True)]
    near = [abs(a - b) for x, y in zip(first, alone, strict=True) for (a, _), (b, _) in zip(x, y, strict=True)]
    assert np.quantile(near, 0.9) <= 0.05  # in a batch or alone, but for the context, which is the batch's
