"""Batches: what a model gets, fed as planned."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from speechlab.batches import Batch, Clips, collate, feed
from speechlab.config import ContextConfig
from speechlab.plan import Plan

QUICKSTART = {"seed": 1, "batch_seconds": 60.0, "micro_batches": 2, "context": ContextConfig()}


def test_collate_pads_to_the_longest_clip():
    waves = [np.full(n, 0.5, dtype=np.float32) for n in (16_000, 24_000, 8_000)]
    batch = collate([(f"id{i}", f"text {i}", w) for i, w in enumerate(waves)])
    assert batch.wave_BN.shape == (3, 24_000)
    assert batch.wave_BN.dtype == torch.float32
    assert (batch.ids, batch.texts) == (("id0", "id1", "id2"), ("text 0", "text 1", "text 2"))
    assert batch.seconds == (1.0, 1.5, 0.5)
    assert batch.context == 2.0  # the longest and half a second
    assert batch.wave_BN.sum().item() == 0.5 * 48_000
    assert batch.wave_BN[2, 8_000:].abs().max() == 0
    assert collate([("a", "", waves[0])], context=30.0).context == 30.0
    kept = batch.rows([2, 0]).at(30.0)
    assert (kept.ids, kept.seconds, kept.context, tuple(kept.wave_BN.shape)) == (("id2", "id0"), (0.5, 1.0), 30.0, (2, 24_000))
    assert batch.context == 2.0  # nothing was changed in place


def same(a: Batch, b: Batch) -> bool:
    return dataclasses.replace(a, wave_BN=None) == dataclasses.replace(b, wave_BN=None) and torch.equal(a.wave_BN, b.wave_BN)


def test_micro_batches_are_fed_as_planned_and_lazily(prompts):
    clips = Clips.of(prompts)
    plan = Plan(clips.durations, **QUICKSTART | {"micro_batches": 4})
    micros = [m for k in (2, 3) for m in plan.step(k)[1].micros]
    fed = list(feed(clips, micros))
    assert [b.ids for b in fed] == [tuple(clips.cuts[i].id for i in m.clips) for m in micros]
    assert [b.texts for b in fed] == [tuple(clips.texts[i] for i in m.clips) for m in micros]
    assert [b.context for b in fed] == [m.context for m in micros]
    assert all(b.wave_BN.shape == (len(b.ids), round(max(b.seconds) * 16_000)) for b in fed)
    endless = feed(clips, (micros[0] for _ in itertools.count()))
    assert same(next(endless), next(endless))


@pytest.mark.slow
def test_loader_workers_do_not_change_batches(prompts):
    clips = Clips.of(prompts)
    micros = [m for s in Plan(clips.durations, **QUICKSTART).epoch(0)[1:4] for m in s.micros]
    none, two = (list(feed(clips, micros, loader_workers=n)) for n in (0, 2))
    assert len(none) == len(two) == 6
    assert all(same(a, b) for a, b in zip(none, two, strict=True))
    assert not same(none[0], none[1])
