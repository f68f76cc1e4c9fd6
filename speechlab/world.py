"""This worker among the workers, and what they agree on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from speechlab.runs import Run, write_atomic


@dataclass(frozen=True)
class World:
    """This worker among the workers.

    Attributes:
        rank: From 0; rank 0 writes checkpoints and events.
        size: All workers.
        device: Torch device of this one.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum(self, *values: float) -> list[float]:
        """Each value summed over workers: one collective, and a barrier."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, rows: list[Any]) -> list[Any]:
        """The rows of all workers, on every worker."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows)
        return [row for part in parts for row in part]

    def same_bits(self, run: Run) -> None:
        """Have sums added up in the same order as before, on a CPU: in as many threads as the run began with, by deterministic kernels.

        The kernels cost no time that could be measured (``reports/LOG.md``); where there is none, torch warns. The threads are those of
        this number of workers: how many they are changes the bits.

        Args:
            run: Keeps the number in ``threads.json``.
        """
        if self.device != "cpu":
            return
        torch.use_deterministic_algorithms(True, warn_only=True)
        # would only cost time: no kernel here reads what it has not written
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        path = run.path / "threads.json"
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
        threads = kept.get(str(self.size), torch.get_num_threads())
        # said even where it is so already: until then MKL decides by itself, and by the machine's load, to take fewer
        torch.set_num_threads(threads)
        if self.rank == 0 and str(self.size) not in kept:
            write_atomic(path, json.dumps(kept | {str(self.size): threads}).encode())
