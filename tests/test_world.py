"""Workers agree: two real processes, and one alone."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

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
