"""Workers agree: two real processes, and one alone."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from speechlab import config
from speechlab.runs import Run
from speechlab.world import World


def both(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World(rank, 2)
    found = world.sum(rank + 1, 0.5), world.gather([f"from {rank}"] * (rank + 1))
    Path(folder, f"{rank}.txt").write_text(repr(found))
    dist.destroy_process_group()


def test_sums_and_rows_are_the_same_on_every_worker(tmp_path):
    mp.spawn(both, (str(tmp_path),), nprocs=2)
    found = {(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)}
    assert found == {"([3.0, 1.0], ['from 0', 'from 1', 'from 1'])"}


def test_one_alone_needs_no_group():
    assert World().sum(2.0, 3) == [2.0, 3]
    assert World().gather(["a"]) == ["a"]


def test_a_run_goes_on_with_the_threads_it_began_with(tmp_path):
    run = Run.create(config.validate({"name": "t", "question": "?"}, "test"), tmp_path)
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(False)
        World(device="cuda").same_bits(run)
        assert not torch.are_deterministic_algorithms_enabled()
        World().same_bits(run)
        assert torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(1)
        World().same_bits(run)
        assert torch.get_num_threads() == 2
        World(1, 2).same_bits(run)  # two workers have a number of their own, which the first of them keeps
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        World(0, 2).same_bits(run)
        torch.set_num_threads(2)
        World(0, 2).same_bits(run)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict)
