"""Beam search against every transcript there is, torchaudio's decoder, greedy decoding, and texts where a language model must help."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from counts import assert_complete
from emitted import emit, noise, normalised, vocabulary_of

from speechlab import corpora, models, ngram
from speechlab.batches import collate
from speechlab.config import ModelConfig, ShapeConfig, VocabularyConfig
from speechlab.errors import InputError
from speechlab.models import beam, ctc
from speechlab.models.beam import Beam, Search, log_probs, merged, sentences
from speechlab.scoring import score
from speechlab.text import normaliser

FEW = ["a b", "ab", "ba ab", "aa b", "a ab b", "b", "bb a", "ab ab"]
META = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
ALONE = Search(beam=1, lm_weight=0.0)


@pytest.fixture(scope="module", autouse=True)
def own_cache(prompts, tmp_path_factory):
    """For language models; the corpus stays where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> ctc.Vocabulary:
    return vocabulary_of(tmp_path_factory.mktemp("letters"), ["<pad>", "|", "a", "b"])


# --- every transcript there is ---


def every(log_probs_FV: np.ndarray, said: Callable[[tuple[int, ...]], tuple | None], blank: int = 0) -> dict[tuple, float]:
    """CTC by its definition: log-probability of whatever paths say, repeats collapsed, then blanks taken out."""
    frames, size = log_probs_FV.shape
    found: dict[tuple, float] = {}
    for path in itertools.product(range(size), repeat=frames):
        key = said(tuple(label for label, _ in itertools.groupby(path) if label != blank))
        if key is not None:
            log = float(sum(log_probs_FV[f, label] for f, label in enumerate(path)))
            found[key] = float(np.logaddexp(found.get(key, -np.inf), log))
    return found


def log10(model: ngram.Ngram, tokens: list[str]) -> Callable[[tuple[str, ...]], float]:
    lm, _ = ngram.kenlm(model, tokens)

    def of(said: tuple[str, ...]) -> float:
        state, total = lm.start(False), 0.0
        for token in said:
            state, one = lm.score(state, tokens.index(token))
            total += one
        return total + lm.finish(state)[1]

    return of


def assert_found(heard: beam.Heard, totals: dict[tuple, float], words: tuple[str, ...], best: tuple) -> None:
    assert heard.words == words
    assert heard.score == pytest.approx(totals[best], abs=1e-3)
    assert heard.confidence == pytest.approx(1 / np.exp(np.array(list(totals.values())) - totals[best]).sum(), abs=1e-3)


def test_without_a_lexicon_the_best_of_all_label_sequences_is_found(letters):
    model = ngram.train(sentences(FEW, letters), 3)
    names = ["?", "|", "a", "b"]
    lm, search = log10(model, names), Beam(letters, model, lexicon=False)
    rng = np.random.default_rng(0)
    greedy = 0
    for frames in [*range(6)] * 5:
        log_probs_FV, weight = noise(rng, frames, 4), float(rng.uniform(0, 3))
        totals = {s: t + weight * lm(tuple(names[i] for i in s)) for s, t in every(log_probs_FV, lambda s: s).items()}
        best = max(totals, key=totals.__getitem__)
        heard = search.decode(log_probs_FV, Search(beam=2000, lm_weight=weight, threshold=1000))
        assert_found(heard, totals, tuple(letters.decode(best).split()), best)
        greedy += heard.text == letters.decode(ctc.greedy(torch.tensor(log_probs_FV[None]), [frames])[0])
    assert greedy < 25, "greedy decoding would not have done"


def test_with_a_lexicon_the_best_of_all_word_sequences_is_found(letters):
    model = ngram.train(sentences(FEW), 2)
    lm, search = log10(model, list(model.words)), Beam(letters, model)
    assert search.left_out == ()

    def words(labels: tuple[int, ...]) -> tuple[str, ...] | None:
        said = tuple("".join("?|ab"[i] for i in labels).replace("|", " ").split())
        return said if set(said) <= set(model.words) else None

    rng = np.random.default_rng(1)
    for frames in [*range(6)] * 5:
        log_probs_FV, weight, word_score = noise(rng, frames, 4), float(rng.uniform(0, 3)), float(rng.uniform(-2, 2))
        totals = {s: t + weight * lm(s) + word_score * len(s) for s, t in every(log_probs_FV, words).items()}
        best = max(totals, key=totals.__getitem__)
        heard = search.decode(log_probs_FV, Search(beam=2000, lm_weight=weight, word_score=word_score, threshold=1000))
        assert_found(heard, totals, best, best)


@pytest.mark.parametrize("frames", range(5))
def test_merged_frames_say_a_label_with_the_probability_of_all_paths_that_say_it_alone(frames):
    log_probs_FV = noise(np.random.default_rng(frames), frames, 3) + np.float32([0, 20, 0])  # always the likeliest: one run
    found = merged(log_probs_FV, blank=0)
    assert found.shape == (min(frames, 1), 3)
    if frames:
        totals = every(log_probs_FV, lambda s: s if len(s) < 2 else None)
        np.testing.assert_allclose(found[0], [totals[()], totals[1,], totals[2,]], atol=1e-3)


def test_runs_of_blanks_and_of_different_labels_stay_frames():
    path = [0, 0, 1, 1, 2, 0, 0, 2, 2, 2]
    log_probs_FV = np.where(np.arange(3) == np.array(path)[:, None], -0.1, -5.0)
    assert merged(log_probs_FV, blank=0).argmax(1).tolist() == [0, 0, 1, 2, 0, 0, 2]


# --- torchaudio ---


@pytest.fixture(scope="module")
def texts(prompts) -> dict[str, list[str]]:
    return {split: [c.supervisions[0].text for c in prompts.cuts[split]] for split in ("train", "test")}


@pytest.fixture(scope="module")
def alphabet(texts, tmp_path_factory) -> ctc.Vocabulary:
    return ctc.make_vocabulary(VocabularyConfig(), texts["train"], tmp_path_factory.mktemp("alphabet"))


@pytest.fixture(scope="module")
def word_model(texts) -> ngram.Ngram:
    return ngram.train(sentences(texts["train"]), 3)


@pytest.fixture(scope="module")
def misheard(texts, alphabet) -> list[tuple[str, np.ndarray]]:
    """Test transcripts of two to ten words, and what a model wrote that mishears a label in seven."""
    said = [text for text in texts["test"] if 2 <= len(ctc.spoken(text).split()) <= 10][:60]
    return [(text, emit(text, alphabet, seed=i, wrong=1 / 7)) for i, text in enumerate(said)]


def torchaudios(vocabulary: ctc.Vocabulary, model: ngram.Ngram, folder: Path, search: Search, sil: str = "|"):
    from torchaudio.models.decoder import ctc_decoder

    lines = [f"{word} {' '.join(word)} |" for word in model.words]
    (folder / "lexicon.txt").write_text("\n".join(lines) + "\n", "utf-8")
    names = beam._names(vocabulary)
    names[vocabulary.blank] = "<blank>"
    return ctc_decoder(
        lexicon=str(folder / "lexicon.txt"), tokens=names, lm=str(model.path), beam_size=search.beam, beam_threshold=search.threshold,
        lm_weight=search.lm_weight, word_score=search.word_score, log_add=True, blank_token="<blank>", sil_token=sil, unk_word="<unk>",
    )  # fmt: skip


def test_torchaudio_finds_the_same_once_the_end_of_a_clip_ends_a_word(alphabet, word_model, misheard, tmp_path):
    search = Search(beam=30, lm_weight=1.5, word_score=-0.5)
    ours, theirs = Beam(alphabet, word_model), torchaudios(alphabet, word_model, tmp_path, search)
    delimiter = np.where(np.arange(len(alphabet)) == alphabet.encode(["a b"])[0][1], 0.0, beam.NEVER).astype(np.float32)
    lost = 0
    for _, log_probs_FV in misheard[:20]:
        heard = ours.decode(log_probs_FV, search)
        padded = torch.tensor(np.vstack([log_probs_FV, delimiter]))
        (best,) = theirs(padded[None])[0]
        assert heard.words == tuple(best.words)
        assert heard.score == pytest.approx(best.score, abs=1e-2)
        sure = normalised(6 * log_probs_FV)  # as of a model that is hardly ever in doubt, and so of the end that was not said
        (bare,) = theirs(torch.tensor(sure)[None])[0]
        lost += len(bare.words) < len(ours.decode(sure, search).words)
    assert lost > 5, "without it the last word is lost"


# --- greedy ---


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_a_beam_of_one_without_a_language_model_is_greedy(alphabet, texts, wrong):
    search = Beam(alphabet, None, lexicon=False)
    for i, text in enumerate(texts["test"]):
        log_probs_FV = emit(text, alphabet, i, wrong)
        expected = alphabet.decode(ctc.greedy(torch.tensor(log_probs_FV[None]), [len(log_probs_FV)])[0])
        assert search.decode(log_probs_FV, ALONE).text == expected
        if not wrong:
            assert expected == ctc.spoken(text)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_so_it_is_of_a_model_and_real_clips_in_a_batch(prompts, texts, tmp_path, kind):
    from speechlab.models.conformer import Conformer

    shape = ShapeConfig(dim=32, layers=2, heads=2, kernel=7, dropout=0.0)
    config = ModelConfig(family="conformer", shape=shape, vocabulary=VocabularyConfig(kind=kind, size=100))
    torch.manual_seed(1)
    Conformer.create(config, None, "en", texts["train"], tmp_path)
    model = models.load("conformer", tmp_path, "en").eval()
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[20:100:10]
    batch = collate([(c.id, c.supervisions[0].text, corpora.load_audio(c)) for c in cuts])
    with torch.inference_mode():
        logits_BFV, frames = model.logits(batch)
    found = log_probs(logits_BFV, frames)
    assert [f.shape for f in found] == [(count, len(model.vocabulary)) for count in frames]
    assert all(np.allclose(np.exp(f).sum(1), 1, atol=1e-5) and f.dtype == np.float32 for f in found)
    search = Beam(model.vocabulary, None, lexicon=False)
    greedy = [h.text for h in model.transcribe(batch)]
    assert [search.decode(f, ALONE).text for f in found] == greedy
    assert any(greedy)
    for word in (False, True):  # the whole way; of an untrained model nothing is expected
        lm = ngram.train(sentences(texts["train"], None if word else model.vocabulary), 3)
        heard = [Beam(model.vocabulary, lm, lexicon=word).decode(f, Search(beam=5)) for f in found]
        assert all(0 < h.confidence <= 1 and math.isfinite(h.score) for h in heard)
        assert not word or {w for h in heard for w in h.words} <= set(lm.words)


# --- what a language model is worth ---

RAW = normaliser("raw")


def wer(search: Beam, misheard: list[tuple[str, np.ndarray]], settings: Search) -> float:
    heard = [search.decode(log_probs_FV, settings).text for _, log_probs_FV in misheard]
    return score([ctc.spoken(text) for text, _ in misheard], heard, RAW).wer


def mixed(texts: list[str]) -> list[str]:
    """The letters of each text in any order: as many of each, and no language."""
    rng = random.Random(0)
    return ["".join(rng.sample(text, len(text))) for text in map(ctc.spoken, texts)]


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_model_of_labels_mends_what_was_misheard_and_one_of_mixed_letters_does_not(texts, tmp_path, kind):
    vocabulary = ctc.make_vocabulary(VocabularyConfig(kind=kind, size=200), texts["train"], tmp_path)
    said = [text for text in texts["test"] if 2 <= len(ctc.spoken(text).split()) <= 10][:40]
    misheard = [(text, emit(text, vocabulary, i, 1 / 7)) for i, text in enumerate(said)]
    alone = wer(Beam(vocabulary, None, lexicon=False), misheard, Search(beam=20, lm_weight=0))
    helped = wer(Beam(vocabulary, ngram.train(sentences(texts["train"], vocabulary), 5), lexicon=False), misheard, Search(20, 1.0))
    control = wer(Beam(vocabulary, ngram.train(sentences(mixed(texts["train"]), vocabulary), 5), lexicon=False), misheard, Search(20, 1.0))
    assert alone > 0.4
    assert helped < 0.4 * alone, "a model of the language"
    assert control > 0.6 * alone, "a model of none"


def test_a_model_of_words_mends_what_was_misheard_and_one_of_another_language_does_not(texts, alphabet, word_model, misheard):
    badly = [(text, emit(text, alphabet, i, 0.4)) for i, (text, _) in enumerate(misheard)]
    alone = wer(Beam(alphabet, None, lexicon=False), badly, ALONE)
    search = Beam(alphabet, word_model)
    known = wer(search, badly, Search(lm_weight=0))
    helped = wer(search, badly, Search(lm_weight=2))
    assert alone > 0.8
    assert known < 0.5 * alone, "a list of words"
    assert helped < 0.8 * known, "and which follow which"
    other = ngram.train(sentences(["tous les êtres humains naissent libres et égaux en dignité et en droits", "où ça"]), 3)
    assert wer(Beam(alphabet, other), badly, Search(lm_weight=2)) > 0.9
    unseen = [text for text, _ in badly if not set(ctc.spoken(text).split()) <= set(word_model.words)]
    assert len(unseen) > 5, "words that are on no list are among what was said"


def test_pieces_that_last_cost_a_lexicon_little(texts, tmp_path, word_model, monkeypatch):
    vocabulary = ctc.make_vocabulary(VocabularyConfig(kind="bpe", size=200), texts["train"], tmp_path)
    said = [text for text in texts["test"] if 2 <= len(ctc.spoken(text).split()) <= 10][:40]
    search = Beam(vocabulary, word_model)
    rates = [wer(search, [(t, emit(t, vocabulary, i, 0.1, n)) for i, t in enumerate(said)], Search(lm_weight=1)) for n in (1, 3)]
    assert rates[1] < rates[0] + 0.1
    monkeypatch.setattr(beam, "merged", lambda log_probs_FV, blank: log_probs_FV)
    bare = wer(search, [(t, emit(t, vocabulary, i, 0.1, 3)) for i, t in enumerate(said)], Search(lm_weight=1))
    assert bare > rates[0] + 0.2, "as flashlight has it"


def test_confidence_is_lower_where_words_are_wrong(alphabet, word_model, misheard):
    search = Beam(alphabet, word_model)
    found = [(ctc.spoken(text), search.decode(log_probs_FV, Search())) for text, log_probs_FV in misheard]
    right, wrong = ([heard.confidence for said, heard in found if (heard.text == said) is so] for so in (True, False))
    assert min(len(right), len(wrong)) > 15
    assert np.mean(right) > 0.9
    assert np.mean(wrong) < 0.8
    nothing = search.decode(np.full((40, len(alphabet)), -math.log(len(alphabet)), np.float32), Search(lm_weight=1))
    assert nothing.confidence < 0.5


# --- vocabularies ---


def test_vocabularies_of_others_spell_too(tmp_path):
    texts = ["don't stop", "a stop", "stop"]
    meta = vocabulary_of(tmp_path / "meta", META)
    assert sentences(["Don't stop!"], meta) == ["d o n ' t | s t o p"]
    model = ngram.train(sentences(texts, meta), 4)
    last = vocabulary_of(tmp_path / "last", [*"adnopst'", "|", "[UNK]", "[PAD]"])  # of Hugging Face's blog, the blank last
    for vocabulary in (meta, last):
        for search in (Beam(vocabulary, ngram.train(sentences(texts), 2)), Beam(vocabulary, model, lexicon=False)):
            assert search.decode(emit("don't stop", vocabulary, 1, 0.0), Search()).words == ("don't", "stop")
    bare = vocabulary_of(tmp_path / "bare", ["<pad>", *"stop"])  # without a delimiter
    assert Beam(bare, ngram.train(sentences(texts), 2)).decode(emit("stop stop", bare, 1, 0.0), Search(lm_weight=0)).text == "stop stop"


def test_words_of_a_file_are_written_as_the_model_writes(tmp_path):
    said = ["HELLO TWENTY-ONE", "HELLO", "<music>", "naïve"]
    model = ngram.train(said, 2)
    vocabulary = vocabulary_of(tmp_path, ["<pad>", "<unk>", "|", *"ehlontwyusmic"])
    search = Beam(vocabulary, model)
    assert search.left_out == ("naïve",)  # no ï; and music can be written, whatever the brackets meant
    heard = search.decode(emit("hello twenty one", vocabulary, 1, 0.0), Search(lm_weight=1))
    assert heard.words == ("hello", "twenty", "one")
    assert heard.text == "hello twenty one"


def test_labels_that_are_no_text_are_no_words_of_a_language_model(tmp_path):
    """A label </s> would otherwise be the end of a sentence, which is likely, in the middle of one."""
    vocabulary = vocabulary_of(tmp_path, META)
    names = beam._names(vocabulary)
    assert not set(names) & set(ngram.MARKS)
    assert len(set(names)) == len(META)
    search = Beam(vocabulary, ngram.train(sentences(["tea"], vocabulary), 2), lexicon=False)
    scores_FV = np.full((4, len(META)), -9.0)
    for frame, label in enumerate([META.index("T"), META.index("</s>"), META.index("E"), META.index("A")]):
        scores_FV[frame, label] = 0
    scores_FV[1, 0] = -3  # the blank is less likely than </s>
    assert search.decode(normalised(scores_FV), Search(lm_weight=1)).text == "tea"


# --- arrays ---


def test_half_precision_and_labels_behind_the_vocabulary_change_nothing(alphabet, word_model, misheard):
    search = Beam(alphabet, word_model)
    for _, log_probs_FV in misheard[:20]:
        expected = search.decode(log_probs_FV, Search())
        half = search.decode(log_probs_FV.astype(np.float16), Search())
        assert half.words == expected.words
        assert half.score == pytest.approx(expected.score, abs=0.2)
        wider = np.hstack([log_probs_FV, np.zeros((len(log_probs_FV), 3), np.float32)])
        assert search.decode(wider, Search()) == expected


def test_one_beam_serves_any_order_of_weights_and_clips(alphabet, word_model, misheard):
    search, settings = Beam(alphabet, word_model), [Search(10, 0.5), Search(10, 3, 1.0)]
    once = [[search.decode(x, s) for _, x in misheard[:5]] for s in settings]
    again = [[Beam(alphabet, word_model).decode(x, s) for _, x in misheard[:5]] for s in reversed(settings)]
    assert once == again[::-1]
    assert once[0] != once[1]


@pytest.mark.parametrize("lexicon", [False, True])
def test_a_clip_of_no_frames_or_of_silence_says_nothing(alphabet, texts, word_model, lexicon):
    model = word_model if lexicon else ngram.train(sentences(texts["train"], alphabet), 3)
    search = Beam(alphabet, model, lexicon=lexicon)
    assert search.decode(np.zeros((0, len(alphabet)), np.float32), Search()).words == ()
    silence = np.full((30, len(alphabet)), -np.inf, np.float32)
    silence[:, alphabet.blank] = 0.0
    heard = search.decode(silence, Search())
    assert (heard.text, heard.confidence) == ("", 1.0)


# --- what cannot be ---


@pytest.mark.parametrize("bad", [{"beam": 0}, {"lm_weight": -1.0}, {"lm_weight": math.nan}, {"word_score": math.inf}, {"threshold": 0.0}])
def test_settings_that_cannot_be(bad):
    with pytest.raises(InputError, match="cannot be set like this") as e:
        Search(**bad)
    assert_complete(e)
    assert next(iter(bad)) in str(e.value)


def test_models_and_vocabularies_that_do_not_go_together(letters, tmp_path):
    cyrillic = ngram.train(sentences(["все люди рождаются"]), 2)
    with pytest.raises(InputError, match=r"nothing in common(.|\n)*все, люди") as e:
        Beam(letters, cyrillic)
    assert_complete(e)
    with pytest.raises(InputError, match=r"nothing in common(.|\n)*\|, a, b") as e:
        Beam(letters, cyrillic, lexicon=False)
    assert_complete(e)
    for model in (None, ngram.Ngram(tmp_path / "x.bin", "", ())):
        with pytest.raises(InputError, match=r"A lexicon needs words(.|\n)*(no language model|no words are known)") as e:
            Beam(letters, model)
        assert_complete(e)


def test_emissions_that_are_of_another_vocabulary_or_no_numbers(letters):
    search = Beam(letters, None, lexicon=False)
    with pytest.raises(InputError, match=r"not log-probabilities(.|\n)*3 labels, 0 NaN(.|\n)*4 labels"):
        search.decode(np.zeros((2, 3), np.float32), ALONE)
    with pytest.raises(InputError, match=r"not log-probabilities(.|\n)*4 labels, 1 NaN"):
        search.decode(np.array([[0, 0, np.nan, 0]], np.float32), ALONE)
    with pytest.raises(InputError, match=r"no word score(.|\n)*word_score 1(.|\n)*with a lexicon"):
        search.decode(np.zeros((2, 4), np.float32), Search(word_score=1.0))
