"""The plan's promises as properties over made-up corpora, and on the real one."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.batches import Batch, Plan, Step, collate, context_for, feed
from speechlab.config import ContextConfig
from speechlab.errors import InputError
from speechlab.training import Clips

QUICKSTART = {"seed": 1, "batch_seconds": 60.0, "micro_batches": 2, "context": ContextConfig()}


@st.composite
def corpora(draw) -> dict:
    micro_batches = draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    low, high = sorted(draw(st.tuples(st.floats(0, 3), st.floats(0, 3))))
    longest = draw(st.integers(320, 480_000))  # samples at 16 kHz: 0.02 to 30 s
    samples = draw(st.lists(st.integers(320, longest), min_size=micro_batches, max_size=60))
    return {
        "durations": [n / 16_000 for n in samples],
        "seed": draw(st.integers(0, 2**31 - 1)),
        # room for two of the longest clips in a micro-batch: these deals never fail
        "batch_seconds": micro_batches * draw(st.floats(2, 8)) * (longest / 16_000 + high),
        "micro_batches": micro_batches,
        "context": ContextConfig(margin_min=low, margin_max=high, full_fraction=draw(st.sampled_from([0.0, 0.08, 0.5, 1.0]))),
    }


def broken_promises(
    steps: tuple[Step, ...], *, durations: list[float], batch_seconds: float, micro_batches: int, context: ContextConfig, **_: object
) -> set[str]:
    """The names of the plan's promises that an epoch's steps break."""
    micros = [m for s in steps for m in s.micros]
    margin = (context.margin_min + context.margin_max) / 2
    longest = [max((durations[i] for i in m.clips), default=0.0) for m in micros]
    broken = set()
    if sorted(i for m in micros for i in m.clips) != list(range(len(durations))):
        broken.add("every clip once")
    if any(len(s.micros) != micro_batches for s in steps) or not all(m.clips for m in micros):
        broken.add("equal steps")
    if any(
        len(m.clips) > 1 and len(m.clips) * (top + margin) > batch_seconds / micro_batches + 1e-9
        for m, top in zip(micros, longest, strict=True)
    ):
        broken.add("budget")
    if not all(top <= m.context <= 30 for m, top in zip(micros, longest, strict=True)):
        broken.add("context")
    full = [s for s in steps if s.full_context]
    wanted = max(context.full_fraction > 0, round(context.full_fraction * len(steps)))  # at least one, if any are wanted
    if len(full) != wanted or any(m.context != 30 for s in full for m in s.micros):
        broken.add("full context")
    for world in (w for w in range(1, micro_batches + 1) if micro_batches % w == 0):
        for step in steps:
            shares = [step.of_rank(rank, world) for rank in range(world)]
            if {len(share) for share in shares} != {micro_batches // world} or {m for s in shares for m in s} != set(step.micros):
                broken.add("shares")
    return broken


def drop(steps, at=0):
    """The steps with the first clip of a micro-batch left out."""
    first = steps[at].micros[0]
    return swap(steps, dataclasses.replace(first, clips=first.clips[1:]), at)


def swap(steps, micro, at=0):
    """The steps with another first micro-batch in one of them."""
    step = dataclasses.replace(steps[at], micros=(micro, *steps[at].micros[1:]))
    return (*steps[:at], step, *steps[at + 1 :])


# --- promises ---


@settings(max_examples=150, deadline=None)
@given(corpora(), st.integers(0, 50))
def test_an_epoch_keeps_every_promise(made, epoch):
    plan = Plan(**made)
    assert broken_promises(plan.epoch(epoch), **made) == set()
    assert len(plan.epoch(epoch)) == plan.steps_per_epoch == Plan(**made | {"seed": made["seed"] + 1}).steps_per_epoch


@pytest.mark.parametrize("batch_seconds", [20.0, 60.0, 90.0, 300.0])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_the_real_corpus_keeps_every_promise(prompts, batch_seconds, micro_batches):
    made = {"durations": Clips.of(prompts).durations, **QUICKSTART, "batch_seconds": batch_seconds, "micro_batches": micro_batches}
    for epoch in range(3):
        assert broken_promises(Plan(**made).epoch(epoch), **made) == set()


@settings(max_examples=50, deadline=None)
@given(corpora(), st.integers(0, 500))
def test_a_step_is_a_function_of_durations_seed_and_epoch_and_needs_no_walk(made, step):
    a, b = Plan(**made), Plan(**made)
    a.epoch(0), a.epoch(1)  # what one plan was asked before does not matter
    Plan.epoch.cache_clear()
    epoch, planned = b.step(step)
    assert Plan.epoch.cache_info().misses == 1  # one epoch was dealt, whatever the step
    assert (epoch, planned) == a.step(step)
    assert planned == a.epoch(step // a.steps_per_epoch)[step % a.steps_per_epoch]


@pytest.mark.parametrize(
    ("promise", "spoil"),
    [
        ("every clip once", drop),
        ("every clip once", lambda steps: swap(steps, steps[1].micros[0])),
        ("equal steps", lambda steps: (*steps[:-1], dataclasses.replace(steps[-1], micros=steps[-1].micros[:1]))),
        ("equal steps", lambda steps: swap(steps, dataclasses.replace(steps[0].micros[0], clips=()))),
        (
            "budget",
            lambda steps: swap(steps, dataclasses.replace(steps[0].micros[0], clips=steps[0].micros[0].clips + steps[1].micros[0].clips)),
        ),
        ("context", lambda steps: swap(steps, dataclasses.replace(steps[0].micros[0], context=0.1))),
        ("context", lambda steps: swap(steps, dataclasses.replace(steps[0].micros[0], context=30.1))),
        ("full context", lambda steps: tuple(dataclasses.replace(s, full_context=False) for s in steps)),
    ],
)
def test_a_broken_deal_is_caught(prompts, promise, spoil):
    made = {"durations": Clips.of(prompts).durations, **QUICKSTART}
    steps = Plan(**made).epoch(0)
    assert broken_promises(steps, **made) == set()
    assert promise in broken_promises(spoil(steps), **made)


def test_a_share_that_misses_a_micro_batch_is_caught(prompts, monkeypatch):
    made = {"durations": Clips.of(prompts).durations, **QUICKSTART}
    monkeypatch.setattr(Step, "of_rank", lambda step, rank, world: step.micros[: len(step.micros) // world])
    assert "shares" in broken_promises(Plan(**made).epoch(0), **made)


def test_other_seeds_and_epochs_are_other_deals(prompts):
    durations = Clips.of(prompts).durations
    one, two = (Plan(durations, **QUICKSTART | {"seed": seed}) for seed in (1, 2))
    dealt = [one.epoch(0), one.epoch(1), two.epoch(0), two.epoch(1)]
    assert len(set(dealt)) == len(dealt)


def test_padding_on_the_real_corpus_is_small_and_known_beforehand(prompts):
    plan = Plan(Clips.of(prompts).durations, **QUICKSTART)
    for epoch in range(3):
        s = plan.summary(epoch)
        print(f"epoch {epoch}: {s.steps} steps, {s.audio:.1f} s of speech, {s.padding:.2%} padding, {s.heard:.0f} s heard, "
              f"{s.full_steps} steps at 30 s")  # fmt: skip
        assert s.audio == pytest.approx(prompts.seconds["train"])
        assert 0 < s.padding < 0.05
        assert s.full_steps == round(0.08 * s.steps) > 0
    worst = Plan(list(np.random.default_rng(0).permutation(Clips.of(prompts).durations)), **QUICKSTART)
    assert worst.summary().padding < 0.05  # the manifest's order does not matter


def test_a_clip_longer_than_its_share_goes_alone():
    plan = Plan([29.0, 1.0, 1.0, 1.0], seed=1, batch_seconds=20, micro_batches=2, context=ContextConfig(full_fraction=0))
    assert (0,) in [m.clips for s in plan.epoch(0) for m in s.micros]


@pytest.mark.parametrize(
    ("longest", "margin", "context"), [(1.0, 0.5, 1.5), (1.01, 0.5, 1.6), (29.9, 2.0, 30.0), (30.0, 0.0, 30.0), (0.02, 0, 0.1)]
)
def test_contexts_lie_on_the_grid(longest, margin, context):
    assert context_for(longest, margin) == context


# --- bad input ---


@pytest.mark.parametrize("bad", [0.0, -1.0, 30.1, math.nan, math.inf])
def test_a_duration_that_cannot_be_planned(bad):
    with pytest.raises(InputError, match=r"duration cannot be planned(.|\n)*above 0 and at most 30 s(.|\n)*corpus.max_seconds"):
        Plan([1.0, bad, 2.0], **QUICKSTART)


@pytest.mark.parametrize("clips", [0, 1])
def test_too_few_clips(clips):
    with pytest.raises(InputError, match=rf"too few clips(.|\n)*{clips} clips(.|\n)*training.micro_batches = 2"):
        Plan([1.0] * clips, **QUICKSTART)


def test_clips_that_cannot_be_dealt_evenly():
    with pytest.raises(InputError, match=r"cannot be dealt evenly(.|\n)*5 clips(.|\n)*raise training.batch_seconds"):
        Plan([20.0] * 5, **QUICKSTART | {"batch_seconds": 40.0})
    assert Plan([20.0] * 5, **QUICKSTART | {"batch_seconds": 90.0}).steps_per_epoch == 2  # the remedy named


# --- batches ---


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


@settings(max_examples=50, deadline=None)
@given(corpora(), st.floats(0.1, 400))
def test_passes_bound_what_is_heard_at_once_and_keep_the_clips(made, limit):
    for step in Plan(**made).epoch(0):
        for micro in step.micros:
            pieces = micro.pieces(limit)
            assert tuple(i for p in pieces for i in p.clips) == micro.clips
            assert all(p.context == micro.context and (len(p.clips) == 1 or p.heard <= limit) for p in pieces)
            assert sum(p.heard for p in pieces) == pytest.approx(micro.heard)
            assert len({len(p.clips) for p in pieces[:-1]}) <= 1  # no more of them than it takes
        assert step.heard == pytest.approx(sum(m.heard for m in step.micros))


@pytest.mark.slow
def test_loader_workers_do_not_change_batches(prompts):
    clips = Clips.of(prompts)
    micros = [m for s in Plan(clips.durations, **QUICKSTART).epoch(0)[1:4] for m in s.micros]
    none, two = (list(feed(clips, micros, loader_workers=n)) for n in (0, 2))
    assert len(none) == len(two) == 6
    assert all(same(a, b) for a, b in zip(none, two, strict=True))
    assert not same(none[0], none[1])
