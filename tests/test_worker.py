"""The process that hears: many at once, killed, stopped, left alone; real weights and real speech."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from speechlab import corpora, passages, systems
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE
from speechlab.worker import Worker

MODEL = "tiny.en"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(tiny_en):
    made = Worker()
    yield made
    made.close()


@pytest.fixture(scope="module")
def spoken(prompts):
    """Clips, and what is heard in each alone, in this process."""
    cuts = sorted(prompts.cuts["test"], key=lambda cut: (cut.duration, cut.id))[80:120:4]
    model, how = systems.ready(MODEL, "en")
    return [(wave, [p for p, _ in passages.hear(model, wave, **how)]) for wave in map(corpora.load_audio, cuts)]


async def heard(worker, wave_N, name=MODEL, **how):
    return [passage async for passage in worker.ask(name, "en", wave_N, **how)]


def texts(found):
    """Words as heard, but for capitals and points: in bf16 the sums of another batch's shape may turn a tie (in fp32: test_batcher.py)."""
    return [re.sub(r"\W+", " ", p.text.lower()).strip() for p in found]


def long_of(spoken, times):
    return np.concatenate([part for wave, _ in spoken * times for part in (wave, np.zeros(2 * SAMPLE_RATE, np.float32))])


async def until(true, seconds=120.0):
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.02)


async def killed_over(worker, *recordings):
    """Kill the process with these in hand for sure: it is stopped first, and what it said before is taken in."""
    ids = {recording.id for recording in recordings}
    while True:
        await until(lambda: ids <= worker._at_hand & worker._waiting.keys())
        os.kill(worker.pid, signal.SIGSTOP)
        await asyncio.sleep(0.5)
        held = ids <= worker._at_hand & worker._waiting.keys()
        os.kill(worker.pid, signal.SIGKILL if held else signal.SIGCONT)
        if held:
            return


def test_twenty_at_once_hear_what_each_would_alone(worker, spoken):
    async def all_at_once():
        assert worker.pid is None, "nothing is started before the first request"
        first = heard(worker, long_of(spoken, 3))
        short = [heard(worker, wave) for wave, _ in spoken * 2]
        return await asyncio.gather(first, *short, heard(worker, np.zeros(SAMPLE_RATE, np.float32)), return_exceptions=True)

    long, *short, silent = asyncio.run(all_at_once())
    assert [texts(found) for found in short] == [texts(alone) for _, alone in spoken * 2]
    for found, (_, alone) in zip(short, spoken * 2, strict=True):
        pairs = [(a, b) for p, q in zip(found, alone, strict=True) for a, b in zip(p.words, q.words, strict=True)]
        assert all(abs(a.begin - b.begin) <= 0.1 and abs(a.confidence - b.confidence) < 0.1 for a, b in pairs)
    assert len(long) >= 3 * len(spoken) and [p.begin for p in long] == sorted(p.begin for p in long) and silent == []
    assert worker._waiting == {} and psutil.Process(worker.pid).num_threads() < 40


def test_a_short_clip_overtakes_a_long_recording_and_who_leaves_is_let_go(worker, spoken):
    async def both():
        long = worker.ask(MODEL, "en", long_of(spoken, 12))
        coming = aiter(long)
        await anext(coming)
        found = await heard(worker, spoken[0][0])
        so_far = long.heard
        long.close()
        left = [p async for p in coming]
        return texts(found), so_far, len(left)

    found, so_far, left = asyncio.run(both())
    assert found == texts(spoken[0][1]) and so_far < 60 and left < 60
    assert worker._waiting == {}
    with pytest.raises(InputError, match="xyz"):
        asyncio.run(heard(worker, spoken[0][0], "xyz/none"))


def test_when_it_dies_another_goes_on_and_the_one_to_blame_is_told(worker, spoken):
    long_N = long_of(spoken, 2)
    model, how = systems.ready(MODEL, "en")
    alone = [p for p, _ in passages.hear(model, long_N, **how)]

    async def killed():
        guilty = worker.ask(MODEL, "en", long_of(spoken, 24))  # which is not done before the second time
        coming_too = aiter(guilty)
        await anext(coming_too)
        recording = worker.ask(MODEL, "en", long_N)
        coming = aiter(recording)
        found = [await anext(coming)]
        pid = worker.pid
        await killed_over(worker, recording, guilty)
        waits = asyncio.gather(*(heard(worker, wave) for wave, _ in spoken[:3]))
        found += [p async for p in coming]
        assert worker.pid != pid and texts(found) == texts(alone)
        assert [texts(one) for one in await waits] == [texts(own) for _, own in spoken[:3]]
        await killed_over(worker, guilty)  # once more
        with pytest.raises(InputError, match="died over the recording, twice"):
            [p async for p in coming_too]
        return await heard(worker, spoken[1][0])

    assert texts(asyncio.run(killed())) == texts(spoken[1][1])


def test_too_many_are_refused_and_one_that_hangs_is_ended(worker, spoken):
    async def stopped():
        worker._most = 2
        pid = worker.pid
        os.kill(pid, signal.SIGSTOP)
        waiting = [asyncio.ensure_future(heard(worker, wave, patience=1.5)) for wave, _ in spoken[:2]]
        await asyncio.sleep(0)
        await until(lambda: len(worker._waiting) == 2)
        with pytest.raises(InputError, match="2 of them"):
            worker.ask(MODEL, "en", spoken[2][0])
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(e, InputError) and "not heard in time" in str(e) for e in done)
        await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")
        return await heard(worker, spoken[2][0])

    try:
        assert texts(asyncio.run(stopped())) == texts(spoken[2][1])
    finally:
        worker._most = 64


@pytest.mark.parametrize("end", ["killed", "finished"])
def test_it_ends_with_whoever_started_it(end):
    code = (
        "import asyncio, numpy as np, sys\nfrom speechlab.worker import SHARED\n"
        "async def ask():\n    SHARED.ask('tiny.en', 'en', np.zeros(16000, np.float32))\n    print(SHARED.pid, flush=True)\n"
        "asyncio.run(ask())\nsys.stdin.readline()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = psutil.Process(int(parent.stdout.readline()))
    assert process.is_running()
    parent.kill() if end == "killed" else parent.stdin.close()
    parent.wait(30)
    psutil.wait_procs([process], timeout=30)
    assert not process.is_running()
