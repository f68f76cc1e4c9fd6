"""Vocabulary, loss and decoding of CTC models against definitions, torch and transformers."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2CTCTokenizer

from speechlab.config import VocabularyConfig
from speechlab.errors import InputError
from speechlab.models import ctc

CHARACTERS = VocabularyConfig()
LANGUAGES = {  # the first article of the declaration of human rights
    "en": "All human beings are born free and equal in dignity and rights. They're endowed with reason.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Große Füße, süße Grüße!",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits; l’esprit, où ça?",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах. Ещё бы!",
}


def labels_of(path) -> list[int]:
    """What a path of labels says, by the definition: repeats collapsed, then blanks (0) taken out."""
    return [label for label, _ in itertools.groupby(path) if label != 0]


# --- text ---


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("Hello,  World!", "hello world"),
        ("Don’t - 'quote' rock 'n' roll", "don't quote rock n roll"),
        ("café CAFE\u0301", "café café"),  # composed, whichever way it came
        ("co\u00adoperate", "cooperate"),  # a soft hyphen is no place to part a word
        ("می\u200cخواهم", "میخواهم"),
        ("हिन्दी।", "हिन्दी"),  # vowel signs stay
        ("<s> </s> <pad> a|b ▁c", "s s pad a b c"),  # nothing that a vocabulary gives a meaning to
        ("… — !", ""),
    ],
)
def test_text_as_it_is_spoken(written, spoken):
    assert ctc.spoken(written) == spoken


@given(st.text())
@settings(deadline=None)
def test_spoken_text_stays_as_it_is(text):
    said = ctc.spoken(text)
    assert ctc.spoken(said) == said == " ".join(said.split())
    assert unicodedata.is_normalized("NFC", said)
    assert not set(said) & {ctc.DELIMITER, "<", ">", "▁"}


# --- vocabularies ---


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_characters_come_back_as_they_were_spoken(texts):
    assume(any(map(ctc.spoken, texts)))
    with TemporaryDirectory() as folder:
        vocabulary = ctc.make_vocabulary(CHARACTERS, texts, Path(folder))
    assert [vocabulary.decode(ids) for ids in vocabulary.encode(texts)] == [ctc.spoken(text) for text in texts]
    assert all(0 < i < len(vocabulary) for ids in vocabulary.encode(texts) for i in ids)


def test_characters_are_those_of_transformers(tmp_path):
    texts = list(LANGUAGES.values())
    ours = ctc.make_vocabulary(CHARACTERS, texts, tmp_path)
    theirs = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    said = [ctc.spoken(text) for text in [*texts, "Œil ☃ 世界"]]  # the last has characters that the vocabulary lacks
    assert ours.encode(said) == theirs(said).input_ids
    assert ours.encode(said)[-1].count(theirs.unk_token_id) == 3  # œ 世 界
    assert (len(ours), ours.blank) == (len(theirs), theirs.pad_token_id)
    for ids, text in zip(ours.encode(texts), said, strict=False):
        assert ours.decode(ids) == theirs.decode(ids, group_tokens=False) == text
    assert ours.decode(ours.encode(["Œil"])[0]) == "il"


@pytest.mark.parametrize("language", LANGUAGES)
def test_pieces_come_back_as_they_were_spoken(language, tmp_path):
    text = LANGUAGES[language]
    vocabulary = ctc.make_vocabulary(VocabularyConfig(kind="bpe", size=60), [text], tmp_path)
    (ids,) = vocabulary.encode([text])
    assert vocabulary.decode(ids) == ctc.spoken(text)
    assert len(vocabulary) == 60
    assert vocabulary.blank == 0
    assert len(ids) < len(ctc.spoken(text))  # pieces, not characters
    assert vocabulary.decode([0, *ids, 0]) == ctc.spoken(text)
    assert vocabulary.decode(vocabulary.encode(["☃ 世 ∅"])[0]) == ""  # unknown, and not the sign that sentencepiece writes
    assert vocabulary.encode([""]) == [[]] and vocabulary.encode([]) == []


def test_pieces_of_five_languages_at_once_in_equal_bytes_wherever_they_are_made(tmp_path):
    config, texts = VocabularyConfig(kind="bpe", size=200), list(LANGUAGES.values())
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    vocabulary = ctc.make_vocabulary(config, texts, tmp_path / "a")
    ctc.make_vocabulary(config, texts, tmp_path / "b")
    assert [vocabulary.decode(ids) for ids in vocabulary.encode(texts)] == [ctc.spoken(text) for text in texts]
    first, second = ((tmp_path / name / "tokenizer.model").read_bytes() for name in "ab")
    assert first == second
    assert str(tmp_path).encode() not in first
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_saved_vocabulary_is_the_same_file(kind, tmp_path):
    (tmp_path / "again").mkdir()
    ctc.make_vocabulary(VocabularyConfig(kind=kind, size=60), [LANGUAGES["de"]], tmp_path).save(tmp_path / "again")
    (written,) = (tmp_path / "again").iterdir()
    assert written.read_bytes() == (tmp_path / written.name).read_bytes()


def vocabulary_of(folder: Path, labels: list[str]) -> ctc.Vocabulary:
    (folder / "vocab.json").write_text(json.dumps({label: i for i, label in enumerate(labels)}))
    return ctc.Vocabulary(folder)


def test_vocabularies_of_others(tmp_path):
    meta = vocabulary_of(tmp_path, ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"])
    assert meta.encode(["Don't!"]) == [[14, 8, 9, 27, 6]]  # in its upper case
    assert meta.decode([2, 14, 8, 9, 27, 6, 3, 4, 4, 5, 0]) == "don't e"
    recipe = vocabulary_of(tmp_path, ["'", "a", "b", "|", "[UNK]", "[PAD]"])  # of Hugging Face's blog, the blank last
    assert recipe.blank == 5
    assert recipe.encode(["A bx"]) == [[1, 3, 2, 4]]
    assert recipe.decode([1, 3, 2, 4, 5]) == "a b"
    mark = vocabulary_of(tmp_path, ["<pad>", "ה", "\u0345"])  # letters without case; upper() would make the mark a letter
    assert mark.encode(["ה\u0345"]) == [[1, 2]]
    assert vocabulary_of(tmp_path, ["<pad>", "a"]).encode(["ab"]) == [[1]]  # no unknown label: it is left out


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": 1}', '{"<pad>": "x"}', '{"<pad>": null}'])
def test_a_folder_without_a_vocabulary_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(InputError, match="holds no vocabulary"):
        ctc.Vocabulary(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no vocabulary"):
        ctc.Vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("config", "texts", "message"),
    [
        (CHARACTERS, [], r"no transcripts(.|\n)*0 clips"),
        (CHARACTERS, ["", "— !"], r"no transcripts(.|\n)*2 clips"),
        (VocabularyConfig(kind="bpe", size=5000), ["a few words"], r"many pieces(.|\n)*5000: Vocabulary size too high(.|\n)*<= \d+"),
        (VocabularyConfig(kind="bpe", size=16), [LANGUAGES["de"]], r"many pieces(.|\n)*16: Vocabulary size is smaller(.|\n)*characters"),
    ],
)
def test_texts_that_give_no_vocabulary(config, texts, message, tmp_path):
    with pytest.raises(InputError, match=message):
        ctc.make_vocabulary(config, texts, tmp_path)
    assert not list(tmp_path.iterdir())


# --- the loss ---


def nats(probabilities_FV: torch.Tensor, labels: list[int]) -> float:
    """CTC by its definition: the probability of every path that says the labels."""
    frames, size = probabilities_FV.shape
    paths = (path for path in itertools.product(range(size), repeat=frames) if labels_of(path) == labels)
    return -math.log(sum(math.prod(probabilities_FV[f, label].item() for f, label in enumerate(path)) for path in paths))


@given(st.lists(st.integers(1, 2), max_size=3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_the_loss_is_that_of_all_paths(labels, seed):
    logits_FV = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    found = ctc.loss(logits_FV[None], [5], [labels])
    assert found.tokens == len(labels)
    assert found.total.item() == pytest.approx(nats(logits_FV.double().softmax(-1), labels), rel=1e-4)


@given(st.lists(st.integers(1, 3), max_size=3))
@settings(deadline=None)
def test_frames_needed_are_the_least_that_any_path_has(labels):
    fewest = next(n for n in range(6) if any(labels_of(path) == labels for path in itertools.product(range(4), repeat=n)))
    assert ctc.frames_needed(labels) == fewest


def batch(blank: int = 0) -> tuple[torch.Tensor, list[int], list[list[int]]]:
    torch.manual_seed(0)
    labels = [[1, 2, 2, 3], [3, 3, 3], [], [4] * 8, [2]]
    swap = {0: blank, blank: 0}
    return torch.randn(5, 12, 6, requires_grad=True), [12, 5, 4, 12, 7], [[swap.get(i, i) for i in row] for row in labels]


@pytest.mark.parametrize("blank", [0, 5])
def test_the_sum_is_transformers_own_without_the_clips_that_cannot_be_aligned(blank):
    logits, frames, labels = batch(blank)
    ours = ctc.loss(logits, frames, labels, blank)
    assert ours.infeasible == (3,)  # eight times the same label needs 15 frames
    assert ours.tokens == 8
    log_probs = logits.log_softmax(-1).transpose(0, 1)  # as in Wav2Vec2ForCTC.forward
    flat, counts = torch.tensor([*itertools.chain(*labels)]), torch.tensor([len(row) for row in labels])

    def theirs(zero_infinity: bool) -> torch.Tensor:
        return torch.nn.functional.ctc_loss(
            log_probs, flat, torch.tensor(frames), counts, blank=blank, reduction="sum", zero_infinity=zero_infinity
        )

    assert ours.total.item() == pytest.approx(theirs(True).item(), rel=1e-6)
    assert theirs(False).item() == math.inf  # negative control: what is left out would have spoilt the step
    (ours.total).backward()
    assert logits.grad.isfinite().all()
    assert [bool(clip.any()) for clip in logits.grad] == [True, True, True, False, True]
    assert not logits.grad[1, 5:].any()  # padding is not looked at
    alone = sum(ctc.loss(logits[i : i + 1, : frames[i]], [frames[i]], [labels[i]], blank).total.item() for i in range(5))
    assert ours.total.item() == pytest.approx(alone, rel=1e-5)


def test_a_batch_of_clips_that_cannot_be_aligned_is_nothing_but_keeps_its_graph():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    found = ctc.loss(logits, [3, 2], [[1, 1, 1], [1, 2, 3]])
    assert (found.total.item(), found.tokens, found.infeasible) == (0.0, 0, (0, 1))
    found.total.backward()
    assert logits.grad is not None and not logits.grad.any()


# --- decoding ---


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=4))
@settings(deadline=None)
def test_greedy_collapses_repeats_before_it_takes_blanks_out(paths):
    frames = [len(path) for path in paths]
    padded = torch.tensor([path + [3] * (max(frames) - len(path)) for path in paths], dtype=torch.long)  # padding says 3
    found = ctc.greedy(torch.nn.functional.one_hot(padded, 4).float(), frames)
    assert found == [labels_of(path) for path in paths]


def test_double_letters_stay(tmp_path):
    vocabulary = ctc.make_vocabulary(CHARACTERS, ["hello"], tmp_path)
    h, e, l, o = (vocabulary.encode([c])[0][0] for c in "helo")  # noqa: E741
    path = [0, h, h, e, l, l, 0, l, l, o, 0, 0]
    logits = torch.nn.functional.one_hot(torch.tensor([path]), len(vocabulary)).float()
    (ids,) = ctc.greedy(logits, [len(path)])
    assert vocabulary.decode(ids) == "hello"
    trap = [label for label, _ in itertools.groupby(label for label in path if label != 0)]
    assert vocabulary.decode(trap) == "helo"  # negative control: blanks first, and a letter is lost


# --- transcripts and how sure they are ---


def peaked(vocabulary: ctc.Vocabulary, path: list[tuple[int, float]]) -> torch.Tensor:
    """Scores in which each frame's label has a probability, and the others share the rest."""
    rows = []
    for label, probability in path:
        row = torch.full((len(vocabulary),), (1 - probability) / (len(vocabulary) - 1))
        row[label] = probability
        rows.append(row.log())
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_word_is_as_sure_as_its_labels(kind, tmp_path):
    texts = ["the cat sat on the mat", "a cat and a hat", "that is that", "he sat at the hat"]
    vocabulary = ctc.make_vocabulary(VocabularyConfig(kind=kind, size=24), texts, tmp_path)
    (ids,) = vocabulary.encode(["the cat"])
    sure = [0.5 + 0.05 * i for i in range(len(ids))]
    # each label lasts two frames, of which the surer one counts, and a blank stands between
    path = [frame for label, p in zip(ids, sure, strict=True) for frame in ((label, p - 0.1), (label, p), (vocabulary.blank, 0.9))]
    logits_BFV = peaked(vocabulary, path)[None]
    (heard,) = ctc.transcripts(logits_BFV, [len(path)], [1.0], vocabulary)
    assert heard.text == "the cat"
    if kind == "characters":
        border = ids.index(vocabulary.encode(["a b"])[0][1])  # the delimiter belongs to neither
        words = sure[:border], sure[border + 1 :]
    else:
        border = next(i for i in range(1, len(ids)) if vocabulary.begins_word(ids[i]))
        words = sure[:border], sure[border:]
    assert heard.confidences == pytest.approx([math.prod(word) for word in words], rel=1e-5)
    assert heard.confidences != pytest.approx([math.prod(word) ** 0.5 for word in words], rel=1e-2)  # negative control
    (found,) = ctc.transcripts(logits_BFV, [len(path)], [1.0], vocabulary, lambda log_probs_FV: (f"{len(log_probs_FV)} frames", 0.25))
    assert (found.text, found.confidences) == (f"{len(path)} frames", (0.25, 0.25))
    (nothing,) = ctc.transcripts(peaked(vocabulary, [(vocabulary.blank, 0.9)])[None], [1], [1.0], vocabulary)
    assert (nothing.text, nothing.confidences, nothing.ended) == ("", (), True)
