"""What made a number: code, configuration, data, weights, dependencies, seeds, hardware.

Not covered yet: the diff of a dirty tree as a patch, and GPU driver versions.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from speechlab import pool
from speechlab.config import Experiment

PACKAGES = ("torch", "torchaudio", "transformers", "ray", "mlflow", "lhotse", "numpy", "whisper-normalizer", "kaldialign")


def collect(experiment: Experiment, config_path: str, data: dict[str, str], weights: dict[str, str | None]) -> dict[str, Any]:
    """Gather the record of a run.

    Args:
        experiment: The resolved config.
        config_path: The frozen file that holds it: the command that makes this run again names it.
        data: The corpus as prepared: ``manifest_sha256``, licence and attribution.
        weights: Name, source and sha256 of the initial weights.

    Returns:
        Plain values that JSON can hold; what cannot be found out is null, never left out.
    """
    return {
        "code": _git(Path(__file__).parent),
        "command": f"speechlab report --config {config_path}",
        "configuration": {"signature": experiment.signature},
        "data": data,
        "weights": weights,
        "dependencies": {
            "lock_sha256": _sha256(Path(__file__).parents[1] / "requirements.lock"),
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "seeds": {"seed": experiment.seed, "rule": "plan, context and noise each derive from (seed, epoch, clip or step)"},
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """CPU, memory and accelerator of this machine, without loading torch."""
    import psutil

    return {
        "cpu": _cpu(),
        "cores": pool.cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": _gpu(),
        "platform": platform.platform(),
    }


def bf16_native() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without it bf16 autocast is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _git(folder: Path) -> dict[str, Any]:
    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    status = git("status", "--porcelain")
    return {"git_sha": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _gpu() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(done.stdout.split("\n")).strip(", ") or None


def to_json(record: dict[str, Any]) -> bytes:
    """The record as it is written to ``provenance.json``."""
    return json.dumps(record, indent=1, ensure_ascii=False).encode()
