"""How much memory something takes: of a GPU what torch has allocated, of a processor what is resident in this process.

Not covered: other processes, memory that a GPU's driver takes for itself.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import psutil
import torch


def used(device: str) -> float:
    """Bytes in use now."""
    if _cuda(device):
        return float(torch.cuda.memory_allocated(device))
    return float(psutil.Process().memory_info().rss)


def free(device: str) -> float:
    """Bytes that a model and its work may take, what is held already included on a GPU."""
    if _cuda(device):
        available, _ = torch.cuda.mem_get_info(device)
        return float(available + torch.cuda.memory_reserved(device))
    return float(psutil.virtual_memory().available)


def trim() -> None:
    """Have the allocator give back what was freed: what it keeps would hide what comes next."""
    with suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


def forget_peak(device: str) -> None:
    """Let :func:`peak` start anew."""
    if _cuda(device):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of resident memory starts anew


def peak(device: str) -> float:
    """Most bytes in use since :func:`forget_peak`; where a system does not say, what is in use now."""
    if _cuda(device):
        return float(torch.cuda.max_memory_allocated(device))
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return used(device)


def _cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"
