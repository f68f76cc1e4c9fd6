"""What a training will be, a line at a time: the same from Python, from the shell and from a process of its own, which can be ended."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import psutil
import pytest
from test_cli import speechlab
from test_cluster import SMOKE

from speechlab import config, forecast, provenance
from speechlab.errors import InputError

NAMES = ["config", "corpus", "weights", "steps", "audio", "padding", "parameters", "workers", "memory", "a step", "estimated time"]


def apart(path: str, *overrides: str) -> list[tuple[str, str]]:
    async def collected() -> list[tuple[str, str]]:
        return [line async for line in forecast.Apart(Path(path), overrides).lines()]

    return asyncio.run(collected())


@pytest.mark.slow
def test_all_three_ways_say_the_same(prompts):
    doing: list[str] = []
    experiment = config.load("configs/smoke.yaml", SMOKE)
    here = dict(forecast.lines(experiment, doing.append))
    assert list(here) == NAMES
    assert here["steps"] == "120 in 60 epochs, 2 micro-batches each; 0 an epoch are heard at 30 s"
    there = apart("configs/smoke.yaml", *SMOKE)
    assert [told for name, told in there if name == forecast.DOING] == doing
    assert there[1] == (forecast.DOING, "preparing corpus and weights"), "said before it is done"
    done = speechlab("train", "--dry-run", *(word for item in SMOKE for word in ("--set", item)), "--config", "configs/smoke.yaml")
    shell = [(line[:15].strip(), line[16:]) for line in done.stdout.splitlines()]
    measured = ("memory", "estimated time")
    plain = [line for line in here.items() if line[0] not in measured]
    assert [line for line in shell if line[0] not in measured] == plain
    assert [line for line in there if line[0] not in (forecast.DOING, *measured)] == plain
    assert [name for name, _ in shell] == NAMES


@pytest.mark.slow
def test_a_precision_that_the_processor_emulates_is_timed_against_fp32(monkeypatch, prompts):
    experiment = config.load("configs/smoke.yaml", [*SMOKE, "training.precision=bf16", "cluster.device=cpu"])
    monkeypatch.setattr(provenance, "bf16_native", lambda: False)
    assert re.fullmatch(
        r"bf16, which this processor emulates: .*\d.* with " + forecast.FASTER, dict(forecast.lines(experiment))["precision"]
    )
    monkeypatch.setattr(provenance, "bf16_native", lambda: True)
    assert "precision" not in dict(forecast.lines(experiment))


@pytest.mark.parametrize(
    ("native", "override", "said"),
    [
        (False, "training.precision=bf16", True),
        (False, "training.precision=fp32", False),
        (True, "training.precision=bf16", False),
        (False, "cluster.device=cuda", False),
        (False, "cluster.address=head:6399", False),
    ],
)
def test_a_precision_is_emulated_on_a_processor_without_it_alone(monkeypatch, native, override, said):
    monkeypatch.setattr(provenance, "bf16_native", lambda: native)
    experiment = config.load("configs/smoke.yaml", ["training.precision=bf16", "cluster.device=cpu", override])
    assert forecast.emulated(experiment) == said


def test_what_is_wrong_is_an_input_error():
    with pytest.raises(InputError, match="wisper") as family:
        apart("configs/smoke.yaml", "model.family=wisper")
    assert 'did you mean "whisper"' in str(family.value)


def test_it_can_be_ended_and_leaves_no_process():
    async def ended() -> tuple[list[str], int]:
        run = forecast.Apart(Path("configs/smoke.yaml"), SMOKE)
        names = []
        async for name, _ in run.lines():
            names.append(name)
            run.end()
        return names, run._process.pid

    names, pid = asyncio.run(ended())
    assert names[0] == "config" and "estimated time" not in names
    assert not psutil.pid_exists(pid)


def test_a_process_that_is_killed_by_others_says_so():
    async def killed() -> None:
        run = forecast.Apart(Path("configs/smoke.yaml"), SMOKE)
        async for _ in run.lines():
            run._process.kill()

    with pytest.raises(InputError, match="exit status -9"):
        asyncio.run(killed())
