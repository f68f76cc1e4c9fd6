"""Requests in common batches: what is heard is what each would hear alone, and what fails spoils no other."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest

from speechlab import corpora, passages, systems
from speechlab.batcher import Batcher, Done
from speechlab.errors import InputError
from speechlab.models import Hypothesis
from speechlab.units import SAMPLE_RATE


class Model:
    """Writes how long each clip is, and can be held, or refuse a clip of a certain length."""

    def __init__(self, refused: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.go, self.refused = threading.Event(), refused
        self.go.set()

    def transcribe(self, batch):
        self.go.wait(20)
        samples = [round(s * SAMPLE_RATE) for s in batch.seconds]
        self.batches.append(samples)
        if self.refused in samples:
            raise RuntimeError("no room")
        return [Hypothesis(str(n), True, 30.0, (0.5,)) for n in samples]

    def times(self, batch, texts):
        return [[(0.0, 0.1)] for _ in texts]


@pytest.fixture(scope="module")
def waves(prompts):
    cuts = sorted(prompts.cuts["test"], key=lambda cut: (cut.duration, cut.id))
    return [corpora.load_audio(cut) for cut in cuts[60:110:10]]


def asked(batcher, id, wave_N, name="m", **how):
    """What comes of a request, as it comes."""
    coming = queue.Queue()
    batcher.ask(id, name, "en", wave_N, coming.put, **how)
    return coming


def all_of(coming):
    found = [coming.get(timeout=120)]
    while isinstance(found[-1], passages.Passage):
        found.append(coming.get(timeout=120))
    return found


@pytest.fixture
def desk():
    made = []

    def make(model, **how):
        made.append(Batcher(ready=lambda name, language: (model, {"device": "cpu", "precision": "fp32"}), **how))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close()


def test_requests_share_batches_and_get_their_own_in_order(desk, waves):
    model, hands = Model(), []
    batcher = desk(model, wait=0.5, at_hand=hands.append)
    long_N = np.concatenate([part for wave in waves for part in (wave, np.zeros(2 * SAMPLE_RATE, np.float32))])
    coming = [asked(batcher, id, wave) for id, wave in enumerate([*waves, long_N])]
    found = [all_of(one) for one in coming]
    assert all(isinstance(one[-1], Done) and one[-1].seconds > 0 for one in found)
    alone = [[p for p, _ in passages.hear(Model(), wave, precision="fp32")] for wave in [*waves, long_N]]
    assert [one[:-1] for one in found] == alone and len(found[-1]) > 4
    assert max(map(len, model.batches)) >= len(waves) and len(model.batches) < sum(map(len, alone)) / 2
    assert hands[-1] == [] and {id for ids in hands for id in ids} == set(range(len(coming)))
    known = asked(batcher, 99, long_N, skip=2, alone=True)
    assert all_of(known)[:-1] == alone[-1][2:]


def test_what_fails_spoils_no_other(desk, waves):
    (span,) = passages.cut(waves[1])
    model = Model(refused=len(passages.pieces(waves[1], [span])[0][1]))
    batcher = desk(model, wait=0.5)
    found = [all_of(asked_) for asked_ in [asked(batcher, id, wave) for id, wave in enumerate(waves[:3])]]
    assert isinstance(found[1][0], InputError) and "no room" in str(found[1][0])
    assert [one[0].text for one in (found[0], found[2])] and all(isinstance(found[i][-1], Done) for i in (0, 2))
    (silent,) = all_of(asked(batcher, 7, np.zeros(SAMPLE_RATE, np.float32)))
    assert isinstance(silent, Done)
    (broken,) = all_of(asked(batcher, 8, np.full(SAMPLE_RATE, np.nan, np.float32)))
    assert isinstance(broken, InputError)


def test_who_goes_is_not_heard_and_does_not_hold_up_others(desk, waves):
    model = Model()
    batcher = desk(model)
    model.go.clear()
    first = asked(batcher, 1, waves[0])
    gone = asked(batcher, 2, waves[1])
    batcher.drop(2)
    model.go.set()
    assert isinstance(all_of(first)[-1], Done) and isinstance(all_of(asked(batcher, 3, waves[2]))[-1], Done)
    lengths = {n for batch in model.batches for n in batch}
    assert gone.empty() and len(passages.pieces(waves[1], passages.cut(waves[1]))[0][1]) not in lengths


def test_a_model_that_could_not_be_loaded_is_tried_again_and_the_oldest_goes(waves):
    loads, broken = [], [True]

    def ready(name, language):
        loads.append(name)
        if name == "shy" and broken:
            broken.pop()
            raise OSError("disk")
        return Model(), {"device": "cpu", "precision": "fp32"}

    batcher = Batcher(ready=ready)
    try:
        (error,) = all_of(asked(batcher, 1, waves[0], "shy"))
        assert isinstance(error, InputError) and "disk" in str(error)
        for id, name in enumerate(["shy", "b", "c", "shy", "d", "shy", "b"], 2):
            assert isinstance(all_of(asked(batcher, id, waves[0], name))[-1], Done)
        assert loads == ["shy", "shy", "b", "c", "d", "b"], "three are kept, the one asked for last longest"
    finally:
        batcher.close()


@pytest.mark.slow
def test_what_else_is_in_the_batch_changes_neither_words_nor_times(prompts, tiny_en):
    cuts = sorted(prompts.cuts["test"], key=lambda cut: (cut.duration, cut.id))
    batch = [p for cut in cuts[50:127:6] for wave in [corpora.load_audio(cut)] for p in passages.pieces(wave, passages.cut(wave))]
    model, how = systems.ready("tiny.en", "en", "cpu", "fp32")
    together = passages.heard(model, batch, **how)
    alone = [passages.heard(model, [piece], **how)[0] for piece in batch]
    assert [p.text for p in together] == [p.text for p in alone] and len({p.text for p in alone}) > 10
    pairs = [(a, b) for p, q in zip(together, alone, strict=True) for a, b in zip(p.words, q.words, strict=True)]
    assert all((a.begin, a.end) == (b.begin, b.end) for a, b in pairs)
    assert np.allclose([a.confidence for a, _ in pairs], [b.confidence for _, b in pairs], atol=1e-3)
    longer = model.times(passages._collated([wave for _, wave in batch], 30.0), [p.text for p in together])  # the negative control
    assert [t for own in longer for t in own] != [(w.begin, w.end) for p in together for w in p.words]
