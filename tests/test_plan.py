"""The plan's promises as properties over made-up corpora, and on the real one."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.batches import Clips
from speechlab.config import ContextConfig
from speechlab.errors import InputError
from speechlab.plan import Plan, Step, context_for

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
    assert len(plan.epoch(epoch)) == plan.steps_in(0) == Plan(**made | {"seed": made["seed"] + 1}).steps_in(0)


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
    dealt = []
    b._deal = lambda epoch: dealt.append(epoch) or Plan._deal(b, epoch)
    epoch, planned = b.step(step)
    assert dealt == [epoch]  # one epoch was dealt, whatever the step
    assert (epoch, planned) == a.step(step)
    assert planned == a[divmod(step, a.steps_in(0))] == b[b.locate(step)]


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


def test_workers_get_alike_to_hear(prompts):
    """They wait for the one that has most: of its time they all have something to do in over 98 %, dealt in turn in under 94."""
    steps = Plan(Clips.of(prompts).durations, seed=1, batch_seconds=320, micro_batches=8, context=ContextConfig(full_fraction=0)).epoch(0)

    def busy(shares_of) -> float:
        shares = [[sum(m.heard for m in share) for share in shares_of(step)] for step in steps]
        return sum(map(sum, shares)) / sum(2 * max(share) for share in shares)

    assert busy(lambda step: [step.of_rank(rank, 2) for rank in range(2)]) > 0.98
    assert busy(lambda step: [step.micros[rank::2] for rank in range(2)]) < 0.94, "control"


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
        assert 0 < s.padding < 0.03
        assert s.full_steps == round(0.08 * s.steps) > 0
    worst = Plan(list(np.random.default_rng(0).permutation(Clips.of(prompts).durations)), **QUICKSTART)
    assert worst.summary().padding < 0.03  # the manifest's order does not matter


def librispeech_like(clips: int) -> np.ndarray:
    """Durations as in train-clean: most between 11 and 17 s, a quarter spread below, none above 24.5 s; mean 12.8 s."""
    rng = np.random.default_rng(0)
    return np.clip(np.where(rng.random(clips) < 0.75, rng.normal(14.5, 1.3, clips), rng.uniform(1.4, 14, clips)), 1.4, 24.5)


@pytest.mark.parametrize("batch_seconds", [80.0, 240.0, 960.0])
def test_padding_on_librispeech_like_durations(batch_seconds):
    durations = librispeech_like(28_539)
    plan = Plan(durations, **QUICKSTART | {"batch_seconds": batch_seconds})
    deals = [plan.epoch(0), plan.epoch(1)]
    assert plan.summary(0).padding < 0.03
    assert plan.summary(1).padding < 0.03
    # and it is shuffled: a clip's company changes from epoch to epoch
    company = [{i: m.clips for s in steps for m in s.micros for i in m.clips} for steps in deals]
    assert np.mean([set(company[0][i]) == set(company[1][i]) for i in range(len(durations))]) < 0.05


@settings(max_examples=100, deadline=None)
@given(corpora(), st.integers(0, 9), st.data())
def test_tokens_are_a_limit_too(made, epoch, data):
    tokens = data.draw(st.lists(st.integers(1, 448), min_size=len(made["durations"]), max_size=len(made["durations"])))
    limit = made["micro_batches"] * data.draw(st.integers(900, 4000))
    plan = Plan(**made, tokens=tokens, batch_tokens=limit)
    assert broken_promises(plan.epoch(epoch), **made) == set()
    for micro in (m for s in plan.epoch(epoch) for m in s.micros):
        assert len(micro.clips) * max(tokens[i] for i in micro.clips) <= limit / made["micro_batches"]
    assert len(Plan(**made, tokens=tokens, batch_tokens=10**9).epoch(0)) == len(Plan(**made).epoch(0))


def test_a_limit_on_tokens_binds():
    durations, tokens = [2.0] * 64, [400] + [5] * 63  # one text that is far too long for its speech
    free, bound = (Plan(durations, **QUICKSTART, tokens=tokens, batch_tokens=limit) for limit in (10**6, 3200))
    assert max(len(m.clips) for s in free.epoch(0) for m in s.micros) == 9
    assert max(len(m.clips) for s in bound.epoch(0) for m in s.micros) == 4


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(0, 300))
def test_stretched_epochs_keep_every_promise(made, step):
    base = np.asarray(made["durations"])

    def stretched(epoch):
        return np.minimum(30, base / np.random.default_rng(epoch).choice([0.9, 1.0, 1.1], len(base)))

    roomy = made | {"batch_seconds": made["batch_seconds"] * 1.2}  # room for two of the longest, slowed down
    plan, other = (Plan(**roomy, stretched=stretched) for _ in range(2))
    epoch, planned = plan.step(step)
    assert broken_promises(plan.epoch(epoch), **roomy | {"durations": stretched(epoch)}) == set()
    assert planned == other[plan.locate(step)]
    assert sum(plan.steps_in(e) for e in range(epoch)) + plan.locate(step)[1] == step
    assert plan.steps(epoch) + plan.locate(step)[1] == step
    assert plan.summary(epoch).audio == pytest.approx(sum(stretched(epoch)))
    assert {m.epoch for m in planned.micros} == {epoch}


@pytest.mark.slow
def test_a_million_clips_fit_into_a_gigabyte():
    durations = librispeech_like(1_000_000)
    tracemalloc.start()
    plan = Plan(durations, **QUICKSTART | {"batch_seconds": 960.0}, tokens=(durations * 4).astype(int), batch_tokens=16_000)
    steps = plan.epoch(7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(len(m.clips) for s in steps for m in s.micros) == 1_000_000
    assert peak < 1e9


def test_a_clip_longer_than_its_share_goes_alone():
    plan = Plan([29.0, 1.0, 1.0, 1.0], seed=1, batch_seconds=20, micro_batches=2, context=ContextConfig(full_fraction=0))
    assert (0,) in [m.clips for s in plan.epoch(0) for m in s.micros]


@pytest.mark.parametrize(
    ("longest", "margin", "context"), [(1.0, 0.5, 1.5), (1.01, 0.5, 1.6), (29.9, 2.0, 30.0), (30.0, 0.0, 30.0), (0.02, 0, 0.1)]
)
def test_contexts_lie_on_the_grid(longest, margin, context):
    assert context_for(longest, margin) == context


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
    assert Plan([20.0] * 5, **QUICKSTART | {"batch_seconds": 90.0}).steps_in(0) == 2  # the remedy named
