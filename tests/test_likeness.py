"""Likeness: the search against brute force, wording against counted trigrams, sound on the real tiny.en."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from heard import clips, heard
from hypothesis import given
from hypothesis import strategies as st

from speechlab import audio, batches, confusions, corpora, effects, likeness, models
from speechlab.config import ModelConfig, ShapeConfig
from speechlab.errors import InputError
from speechlab.evaluation import System
from speechlab.likeness import DIMENSIONS, Index, wording
from speechlab.scoring import score
from speechlab.text import normaliser

TEXTS = [
    ("the number you have dialed", "the number you have dialed"),
    ("please hold the line", "please hold a lion"),
    ("press the pound key", "press the town key"),
    ("goodbye", ""),
    ("the line is busy", "the line is busy now"),
]


def index(texts: list[tuple[str, str]] = TEXTS, **spaces: np.ndarray) -> Index:
    ids = [f"clip-{i}" for i in range(len(texts))]
    scores = score(*map(list, zip(*texts, strict=True)), normaliser("basic"))
    worded = np.stack([wording(pair) for pair in texts]).astype(np.float16)
    return Index(tuple(ids), scores.references, scores.hypotheses, confusions.words(scores, ids), normaliser("basic"),
                 {"wording": worded, **spaces})  # fmt: skip


# --- wording ---


def counted(a: str, b: str) -> float:
    """The cosine of the trigrams themselves."""
    counts = [Counter(f" {text} "[i : i + 3] for i in range(len(text))) or Counter([""]) for text in (a, b)]
    damped = [{gram: 1 + np.log(n) for gram, n in c.items()} for c in counts]
    dot = sum(value * damped[1].get(gram, 0) for gram, value in damped[0].items())
    return dot / np.prod([np.sqrt(sum(v * v for v in d.values())) for d in damped])


words = st.lists(st.text("abcdefgh", min_size=1, max_size=7), max_size=8).map(" ".join)


@given(words, words)
def test_hashed_wording_has_the_cosine_of_the_trigrams(a, b):
    hashed = float(wording([a]) @ wording([b]))
    assert abs(hashed - counted(a, b)) < 0.2, "six times the blur of 1,024 dimensions"
    assert float(wording([a]) @ wording([a])) == pytest.approx(1, abs=1e-5)


def test_the_blur_is_what_the_module_says():
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz "), 40)) for _ in range(300)]
    off = [float(wording([a]) @ wording([b])) - counted(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)]
    assert np.std(off) == pytest.approx(1 / np.sqrt(DIMENSIONS), rel=0.25)
    assert abs(np.mean(off)) < 0.01


def test_a_loop_does_not_drown_a_text():
    said = "please enter your agent number"
    looped = wording([said, said + " you" * 200])
    assert float(looped @ wording([said])) > 0.8 > float(looped @ wording(["you you you"]))


def test_empty_texts_are_like_each_other_alone():
    nothing = wording(["", ""])
    assert float(nothing @ wording([""])) == pytest.approx(1, abs=1e-5)
    assert abs(float(nothing @ wording(["hello there", "hello"]))) < 0.2


def test_trigrams_that_cancel_leave_a_number(monkeypatch):
    signs = iter([1, -1])
    monkeypatch.setattr(likeness, "_place", lambda gram: (0, next(signs)))
    assert not wording(["ab"]).any()


# --- the search ---


@pytest.mark.parametrize("by", ["sound", "wording"])
def test_the_nearest_are_those_of_brute_force(by):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((500, 64)).astype(np.float16)
    made = index([(f"word {i}", f"word {i}") for i in range(500)], **{by: vectors})
    exact = vectors.astype(float) / np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    for i in (0, 17, 499):
        cosines = exact @ exact[i]
        cosines[i] = -np.inf
        order = np.argsort(-cosines)[:10]
        found = made.like(f"clip-{i}", by, 10)
        assert list(found.id) == [f"clip-{j}" for j in order]
        np.testing.assert_allclose(found.likeness, cosines[order], atol=1e-3)


def test_more_than_there_are_and_one_alone():
    made = index()
    assert len(made.like("clip-0", "wording", 99)) == len(TEXTS) - 1
    assert index(TEXTS[:1]).like("clip-0", "wording").empty


def test_unknown_utterances_and_spaces_are_named():
    with pytest.raises(InputError, match=r"no such utterance[\s\S]*got: +clip-9[\s\S]*did you mean"):
        index().like("clip-9")
    with pytest.raises(InputError, match=r"kind of likeness[\s\S]*got: +sond[\s\S]*sound or wording"):
        index().like("clip-0", "sond")
    with pytest.raises(InputError, match=r"sound to the model is not known[\s\S]*give the system"):
        index().like("clip-0", "sound")


def test_a_search_finds_words_errors_first():
    found = index().search("Line!")
    assert list(zip(found.id, found.found, strict=True))[:2] == [("clip-1", "said, not heard"), ("clip-4", "said and heard")]
    found = index().search("town")
    assert tuple(found.iloc[0][["id", "found"]]) == ("clip-2", "heard, not said")
    found = index().search("the pound")
    assert tuple(found.iloc[0][["id", "found"]]) == ("clip-2", "said, not heard")
    assert "said and heard" not in set(index().search("the busy").found), "words in a row"
    assert set(index().search("lin").found) <= {"worded alike"}, "whole words"


def test_a_search_goes_on_with_what_is_worded_alike():
    found = index().search("the number you have dialled is not in service")
    assert set(found.found) == {"worded alike"}
    assert found.id[0] == "clip-0"
    assert (found.likeness >= likeness.FAINT).all()
    assert found.likeness.is_monotonic_decreasing
    assert index().search("zzzz qqqq").empty


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("pound > town", ["clip-2"]),
        ("line > lion", ["clip-1"]),
        ("the > a", ["clip-1"]),
        ("Goodbye >", ["clip-3"]),
        ("> now", ["clip-4"]),
        ("> town", ["clip-2"]),
        ("line > town", []),
        ("busy > busy", []),
    ],
)
def test_a_confusion_can_be_searched_for(text, ids):
    found = index().search(text)
    assert list(found.id) == ids
    assert set(found.found) <= {"misheard so"}


@pytest.mark.parametrize("text", ["", " ", "?!", ">", " > ."])
def test_a_search_for_nothing_is_refused(text):
    with pytest.raises(InputError, match=r"nothing to search for[\s\S]*said > heard"):
        index().search(text)


# --- what is kept ---


@pytest.fixture
def made(prompts):
    cuts = clips(prompts, len(TEXTS))
    return heard(cuts, TEXTS), cuts


class Deaf(Exception):
    pass


def no_listening(*args, **how):
    raise Deaf


def some_system(folder: Path | str = "nowhere") -> System:
    return System("finetuned", "whisper", str(folder), "w" * 64, "en")


def test_what_was_made_is_kept_and_read(made, tmp_path, monkeypatch):
    e, cuts = made
    rng = np.random.default_rng(3)
    monkeypatch.setattr(likeness, "listen", lambda *args, **how: {c.id: rng.standard_normal(8).astype(np.float32) for c in cuts})
    first = likeness.prepare(e, cuts, tmp_path, some_system())
    monkeypatch.setattr(likeness, "listen", no_listening)
    monkeypatch.setattr(likeness, "wording", no_listening)
    for system in (None, some_system()):
        again = likeness.prepare(e, cuts, tmp_path, system)
        for by in likeness.SPACES:
            np.testing.assert_array_equal(again.spaces[by], first.spaces[by])
    assert not np.abs(first.spaces["sound"].astype(float).mean(0)).max() > 0.5, "centred"
    assert sorted(p.suffix for p in (tmp_path / "likeness").iterdir()) == [".json", ".json", ".npy", ".npy"]
    assert list(tmp_path.glob("*--*--*.json")) == [], "no evaluation is taken for one"


@pytest.mark.parametrize("change", ["weights_sha256", "heard_sha256", "hypothesis"])
def test_other_weights_clips_or_texts_are_listened_to_anew(made, tmp_path, monkeypatch, change):
    e, cuts = made
    monkeypatch.setattr(likeness, "listen", lambda *args, **how: {c.id: np.arange(i + 1, i + 9.0) ** 2 for i, c in enumerate(cuts)})
    likeness.prepare(e, cuts, tmp_path, some_system())
    other = heard(cuts, [("x", "y")] * len(cuts)) if change == "hypothesis" else heard(cuts, TEXTS, **{change: "x" * 64})
    assert "sound" not in likeness.prepare(other, cuts, tmp_path).spaces
    monkeypatch.setattr(likeness, "listen", no_listening)
    with pytest.raises(Deaf):
        likeness.prepare(other, cuts, tmp_path, System("finetuned", "whisper", "", other.weights_sha256, "en"))


def test_a_system_of_other_weights_is_refused(made, tmp_path):
    e, cuts = made
    with pytest.raises(InputError, match=r"other weights[\s\S]*got: +finetuned, vvvvvvvvvvvv\n[\s\S]*expected: wwwwwwwwwwww"):
        likeness.prepare(e, cuts, tmp_path, System("finetuned", "whisper", "", "v" * 64, "en"))


class Bomb:
    """What pickle would run."""

    def __reduce__(self):
        return (Path.touch, (Path("bomb-went-off"),))


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "pickle", "shape", "dtype", "note"])
def test_only_what_was_written_is_loaded(made, tmp_path, monkeypatch, damage):
    import hashlib

    monkeypatch.chdir(tmp_path)
    e, cuts = made
    first = likeness.prepare(e, cuts, tmp_path)
    array, note = (tmp_path / "likeness" / f"{e.name}.wording.{suffix}" for suffix in ("npy", "json"))
    data = array.read_bytes()
    if damage == "flipped":
        array.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "short":
        array.write_bytes(data[:-100])
    elif damage == "gone":
        array.unlink()
    elif damage == "note":
        note.write_text("{")
    else:  # one that vouches for itself
        bad = {"pickle": np.array([Bomb()] * 5, object), "shape": np.zeros((4, DIMENSIONS), np.float16), "dtype": np.zeros((5, 9))}
        np.save(array, bad[damage], allow_pickle=True)
        known = {**json.loads(note.read_text()), "sha256": hashlib.sha256(array.read_bytes()).hexdigest()}
        note.write_text(json.dumps(known))
    again = likeness.prepare(e, cuts, tmp_path)
    np.testing.assert_array_equal(again.spaces["wording"], first.spaces["wording"])
    assert not Path("bomb-went-off").exists()


def test_the_bomb_of_the_test_above_is_one(tmp_path, monkeypatch):
    """Negative control."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("bomb-went-off").exists()


# --- sound ---


@pytest.fixture(scope="module")
def models_of(tmp_path_factory, small_whisper):
    """A small model of each family."""
    shape = ShapeConfig(dim=32, layers=2, heads=2, kernel=7, dropout=0.0)
    folders = {"whisper": small_whisper}
    for family, wanted in (("conformer", shape), ("wav2vec2", ShapeConfig(size="tiny", dim=64, layers=2))):
        folders[family] = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            kind = models.family_class(family)
            kind.create(
                ModelConfig(family=family, shape=wanted), None, "en", ["the quick brown fox jumps over the lazy dog"], folders[family]
            )
    return {family: models.load(family, folder, "en").eval() for family, folder in folders.items()}


@pytest.mark.parametrize("family", models.FAMILIES)
def test_what_a_clip_sounds_like_does_not_depend_on_its_batch(models_of, prompts, family):
    model = models_of[family]
    cuts = [c for c in sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id)) if c.duration < 8][::40]
    rows = [(c.id, "", corpora.load_audio(c)) for c in cuts]
    together = model.embed(batches.collate(rows))
    alone = torch.cat([model.embed(batches.collate([row])) for row in rows])
    assert together.dtype == torch.float32
    assert together.shape == (len(cuts), alone.shape[1])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    padded = torch.cat([model.embed(batches.collate([(i, t, np.pad(w, (0, 8000)))])) for i, t, w in rows])
    assert (padded - alone).abs().max() > 1e-2, "negative control: silence that is the clip's own is heard"


@pytest.fixture(scope="module")
def listened(prompts, tiny_en):
    """States of tiny.en for clips, their copies with noise at 10 dB, and other readings of a text."""
    cuts = [c for c in prompts.cuts["test"] if 1 < c.duration < 4][:24]
    model = models.load("whisper", tiny_en, "en").eval()
    waves = [corpora.load_audio(c) for c in cuts]
    noisy = [effects.noise(wave, 10.0, audio.clip_seed(1, c.id)) for wave, c in zip(waves, cuts, strict=True)]
    states = [model.embed(batches.collate([("", "", w) for w in part])).numpy() for part in (waves, noisy)]
    return cuts, np.concatenate(states)


def test_a_noisy_copy_is_nearest_to_its_clip(listened):
    cuts, states_UD = listened
    n = len(cuts)
    centred = (states_UD - states_UD.mean(0)).astype(np.float16)
    made = index([("a", "a")] * (2 * n), sound=centred)
    hits = [made.like(f"clip-{i}", "sound", 1).id[0] == f"clip-{(i + n) % (2 * n)}" for i in range(2 * n)]
    other = np.random.default_rng(4).standard_normal(centred.shape).astype(np.float16)
    chance = index([("a", "a")] * (2 * n), sound=other)
    misses = [chance.like(f"clip-{i}", "sound", 1).id[0] == f"clip-{(i + n) % (2 * n)}" for i in range(2 * n)]
    print(f"nearest: {np.mean(hits):.0%}, at random {np.mean(misses):.0%}")
    assert np.mean(misses) < 0.2
    clean_to_noisy = centred[n:].astype(float) @ centred[:n].astype(float).T
    clean_to_noisy /= np.outer(*(np.linalg.norm(part.astype(float), axis=1) for part in (centred[n:], centred[:n])))
    assert np.mean(clean_to_noisy.argmax(1) == np.arange(n)) > 0.9, "of all clips the noisy copy is most like its own"


def test_the_index_of_a_real_system(prompts, tiny_en, tmp_path):
    from speechlab.models import weights

    cuts = clips(prompts, 6)
    texts = [(c.supervisions[0].text, c.supervisions[0].text) for c in cuts]
    found = weights.resolve("whisper", "tiny.en")
    e = heard(cuts, texts, weights_sha256=found.sha256)
    system = System("finetuned", "whisper", str(found.path), found.sha256, "en")
    made = likeness.prepare(e, cuts, tmp_path, system, progress=False)
    assert made.spaces["sound"].shape == (6, 384)
    assert len(made.like(cuts[0].id, "sound", 3)) == 3
    pd.testing.assert_frame_equal(likeness.prepare(e, cuts, tmp_path).like(cuts[0].id), made.like(cuts[0].id))


def test_the_same_text_by_two_clips_is_nearest_in_wording(prompts):
    said = [c.supervisions[0].text for c in clips(prompts, 30)]
    rules = normaliser("basic")
    texts = [(rules(t), rules(t)) for t in said] + [(rules(t), rules(t).replace("the", "a")) for t in said]
    made = index(texts)
    for i in range(30):
        same = {f"clip-{j}" for j, pair in enumerate(texts) if pair[0] == texts[i][0]}
        assert made.like(f"clip-{i}", "wording", 1).id[0] in same
