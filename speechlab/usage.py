"""How busy this machine is: processor, memory, GPU, by the names that MLflow's page of system metrics knows.

Not covered: disks and the network; other nodes than that of the worker who asks.
"""

from __future__ import annotations

from contextlib import suppress

import psutil
import torch


def now(device: str) -> dict[str, float]:
    """What is taken of the machine, by everybody on it.

    Args:
        device: Torch device; of a GPU its own values are there too, where its driver tells them.

    Returns:
        Percent of the processor since this process asked last (the first time 0), memory in MB (1e6 bytes) and percent; of a GPU
        likewise.
    """
    memory = psutil.virtual_memory()
    found = {
        "cpu_utilization_percentage": float(psutil.cpu_percent(interval=None)),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": float(memory.percent),
    }
    return found | _gpu(device)


def _gpu(device: str) -> dict[str, float]:
    at = torch.device(device)
    if at.type != "cuda":
        return {}
    name = f"gpu_{at.index or 0}"
    free, whole = torch.cuda.mem_get_info(at)
    found = {f"{name}_memory_usage_megabytes": (whole - free) / 1e6, f"{name}_memory_usage_percentage": 100 * (1 - free / whole)}
    with suppress(RuntimeError, ModuleNotFoundError, AttributeError):  # NVML, which not every driver has
        found[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(at))  # type: ignore[no-untyped-call]
    return found
