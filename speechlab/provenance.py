"""What made a number: code, configuration, data, weights, dependencies, seeds, hardware.

Three parts of a run hold it. :func:`keep` writes ``provenance.json`` once, when training starts, and beside it what is too long
for a record: the clips (``manifest.jsonl.gz``), the installed packages (``packages.txt``), and what the code had that its
commit has not (``code.patch``). What is known only later is in the events. :func:`record` assembles all of it, and
:func:`missing` checks that against :data:`SCHEMA`; the record of a run that is older than a field lacks that field.

Not covered: what a machine does besides; packages that were changed where they are installed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechlab import commit, pool, runs, text
from speechlab.config import Experiment
from speechlab.errors import InputError
from speechlab.runs import Run, write_atomic

if TYPE_CHECKING:  # both load torch
    from speechlab.corpora import Corpus
    from speechlab.models.weights import Weights

ROWS = ("code", "configuration", "data", "weights", "dependencies", "seeds", "hardware")  # each is required, whatever else is
PACKAGES = ("torch", "torchaudio", "transformers", "ray", "mlflow", "lhotse", "numpy", "whisper-normalizer", "kaldialign")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": fields}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_MAYBE: dict[str, Any] = {"type": ["string", "null"]}
_NUMBER: dict[str, Any] = {"type": ["number", "null"]}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_SHA: dict[str, Any] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_MAYBE_SHA: dict[str, Any] = {"anyOf": [_SHA, {"type": "null"}]}
_LINK = _object(step=_COUNT, digest=_SHA)
# JSON Schema of what record() gives for a run that has begun; null is what cannot be found out
SCHEMA = _object(
    code=_object(git_sha=_MAYBE, dirty={"type": ["boolean", "null"]}, patch=_MAYBE, patch_sha256=_MAYBE_SHA, left_out=_list(_TEXT)),
    configuration=_object(signature=_TEXT, sha256=_SHA, file=_TEXT),
    data=_object(manifest_sha256=_SHA, manifest=_TEXT, licence=_MAYBE, attribution=_MAYBE),
    weights=_object(name=_MAYBE, source=_TEXT, sha256=_MAYBE_SHA, final_sha256=_MAYBE_SHA, chain=_list(_LINK)),
    dependencies=_object(
        lock_sha256=_MAYBE_SHA, python=_TEXT, packages=_TEXT, packages_sha256=_SHA, conda=_MAYBE, **dict.fromkeys(PACKAGES, _MAYBE)
    ),
    seeds=_object(seed=_COUNT, **dict.fromkeys(("python", "numpy", "torch", "ray", "plan", "augmentation"), _TEXT)),
    hardware=_object(
        cpu=_TEXT, capability=_TEXT, cores=_COUNT, memory_bytes=_COUNT, platform=_TEXT, gpu=_MAYBE, driver=_MAYBE, cuda=_MAYBE, cudnn=_MAYBE
    ),
    execution=_object(
        workers=_COUNT, loader_workers=_COUNT, threads=_COUNT, device=_TEXT, precision=_TEXT, determinism=_object(), environment=_object()
    ),
    normaliser=_TEXT,
    command=_TEXT,
    time=_object(start=_NUMBER, end=_NUMBER),
    cost=_object(seconds=_NUMBER, worker_seconds=_NUMBER, steps=_COUNT, audio_seconds=_NUMBER, peak_memory_bytes=_NUMBER),
    state=_TEXT,
)  # fmt: skip


def keep(run: Run, corpus: Corpus, start: Weights, workers: int, device: str) -> None:
    """Write the record of a run that starts, and the files it names.

    Args:
        run: The run.
        corpus: As prepared.
        start: The initial weights.
        workers: That train together.
        device: Torch device of this one.
    """
    lines = "".join(f"{line}\n" for line in corpus.manifest).encode()
    write_atomic(run.path / "manifest.jsonl.gz", gzip.compress(lines, mtime=0))
    packages = installed()
    write_atomic(run.path / "packages.txt", packages.encode())
    code, patch = commit.source(Path(__file__).parent)
    if patch:
        write_atomic(run.path / "code.patch", patch)
    data = {"manifest_sha256": corpus.manifest_sha256, "licence": corpus.licence, "attribution": corpus.attribution}
    weights = {name: getattr(start, name) for name in ("name", "source", "sha256", "revision", "licence")}
    gathered = collect(run.config, f"{run.path.parent.name}/{run.id}/config.yaml", data, weights, workers, device, code, packages)
    write_atomic(run.path / "provenance.json", to_json(gathered))


def collect(
    experiment: Experiment,
    config_path: str,
    data: dict[str, str],
    weights: dict[str, str | None],
    workers: int = 1,
    device: str = "cpu",
    code: dict[str, Any] | None = None,
    packages: str | None = None,
) -> dict[str, Any]:
    """Gather the record of a run.

    Args:
        experiment: The resolved config.
        config_path: The frozen file that holds it: the command that makes this run again names it.
        data: The corpus as prepared: ``manifest_sha256``, licence and attribution.
        weights: Name, source and sha256 of the initial weights.
        workers: That train together.
        device: Torch device of this one.
        code: From :func:`speechlab.commit.source`; None looks at this package.
        packages: From :func:`installed`; None looks.

    Returns:
        Plain values that JSON can hold; what cannot be found out is null, never left out.
    """
    return {
        "code": code or commit.source(Path(__file__).parent)[0],
        "command": f"speechlab report --config {config_path}",
        "configuration": {"signature": experiment.signature, "sha256": config_sha256(experiment), "file": "config.yaml"},
        "data": {**data, "manifest": "manifest.jsonl.gz"},  # a line a clip, with the digest of its samples
        "weights": weights,
        "dependencies": {
            "lock_sha256": _sha256(Path(__file__).parents[1] / "requirements.lock"),
            "python": platform.python_version(),
            "packages": "packages.txt",
            "packages_sha256": hashlib.sha256((packages or installed()).encode()).hexdigest(),
            "conda": os.environ.get("CONDA_DEFAULT_ENV"),
            **{name: _version(name) for name in PACKAGES},
        },
        "seeds": {
            "seed": experiment.seed,
            "torch": "weights and adapters from seed, each pass from (seed, step, first clip)",
            "plan": "order and context from (seed, epoch)",
            "augmentation": "from the hash of (seed, epoch, transform, clip)",
            "python": "its generator is not drawn from",
            "numpy": "its global generator is not drawn from",
            "ray": "shuffles nothing",
        },
        "hardware": {**hardware(), **_accelerated()},
        "execution": _execution(experiment, workers, device),
        "normaliser": text.normaliser(experiment.evaluation.normaliser).identity,
    }


def digests(events: Sequence[runs.Event]) -> dict[int, str]:
    """The chain: digests of the weights after steps, ascending; a checkpoint's is what counts for its step."""
    found: dict[int, str] = {}
    for kind in ("step", "checkpoint"):
        rows = runs.per_step(list(events), kind).to_dict("records")
        found.update((row["step"], row["digest"]) for row in rows if isinstance(row.get("digest"), str))
    return dict(sorted(found.items()))


def record(run: Run) -> dict[str, Any]:
    """The whole record of a run, from what was written when it began and from its events.

    Returns:
        As :data:`SCHEMA` says; of a run made by an earlier version of the lab what that version kept.
    """
    events = run.events()
    begun, steps = run.provenance, run.steps()
    chain = [{"step": step, "digest": digest} for step, digest in digests(events).items()]
    kept = runs.per_step(events, "checkpoint")
    final = kept.digest.iloc[-1] if "digest" in kept else None
    sittings = _sittings(events)
    return {
        **begun,
        "weights": {**begun.get("weights", {}), "final_sha256": final, "chain": chain},
        "time": {"start": sittings[0][0] if sittings else None, "end": sittings[-1][1] if sittings else None},
        "cost": {
            "seconds": sum(end - start for start, end, _ in sittings),
            "worker_seconds": sum((end - start) * workers for start, end, workers in sittings),
            "steps": len(steps),
            "audio_seconds": float(steps.audio_seconds.sum()) if "audio_seconds" in steps else None,
            "peak_memory_bytes": max((e["memory_bytes"] for e in events if "memory_bytes" in e), default=None),
        },
        "state": run.state,
    }


def missing(whole: dict[str, Any]) -> list[str]:
    """What a record lacks or has wrong, by :data:`SCHEMA`, a line each; none is a complete one.

    >>> missing({})[:2]
    ['code: missing', 'command: missing']

    Args:
        whole: From :func:`record`.
    """
    from jsonschema import Draft202012Validator

    found = []
    for error in Draft202012Validator(SCHEMA).iter_errors(whole):
        path = [str(part) for part in error.absolute_path]
        if error.validator == "required":  # one error for each name that is missing, which its message begins with
            found.append(".".join([*path, error.message.split("'")[1]]) + ": missing")
        else:
            found.append(f"{'.'.join(path)}: {error.message[:200]}")
    return sorted(found)


def clips(run: Run) -> list[str] | None:
    """The manifest that a run was trained on, a line of JSON a clip; None for a run that kept only its hash.

    Raises:
        InputError: if the file is not what the record says.
    """
    path, kept = run.path / "manifest.jsonl.gz", run.provenance.get("data")
    if kept is None or not path.exists():
        return None
    try:
        lines = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as e:
        raise InputError("The run's manifest cannot be read.", got=f"{path}: {e}", expected="the file that was written") from None
    if (got := hashlib.sha256(lines).hexdigest()) != kept["manifest_sha256"]:
        raise InputError("The run's manifest is not the one of its record.", got=got, expected=kept["manifest_sha256"])
    return lines.decode().splitlines()


def config_sha256(experiment: Experiment) -> str:
    """SHA-256 over the whole resolved config as canonical JSON."""
    return hashlib.sha256(json.dumps(experiment.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def installed() -> str:
    """Every installed package with its version, one a line, as ``pip freeze`` writes them."""
    return "".join(f"{line}\n" for line in sorted({f"{d.name}=={d.version}" for d in distributions()}, key=str.lower))


def hardware() -> dict[str, Any]:
    """CPU, memory and accelerator of this machine, without loading torch."""
    import psutil

    gpu, driver = _gpu()
    return {
        "cpu": _cpu(),
        "cores": pool.cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "driver": driver,
        "platform": platform.platform(),
    }


def _accelerated() -> dict[str, Any]:
    """What of the machine decides which kernels run, as torch sees it."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": str(torch.backends.cudnn.version()) if cuda else None,  # type: ignore[no-untyped-call]
    }


def _execution(experiment: Experiment, workers: int, device: str) -> dict[str, Any]:
    import torch

    return {
        "workers": workers,
        "loader_workers": experiment.cluster.loader_workers,
        "threads": torch.get_num_threads(),
        "device": device,
        "precision": experiment.training.precision,
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        },
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def bf16_native() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without it bf16 autocast is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _sittings(events: Sequence[runs.Event]) -> list[tuple[float, float, int]]:
    """When each driver began, when its last event was, and how many workers it had."""
    found: list[tuple[float, float, int]] = []
    for event in events:
        if event["kind"] == "start":
            found.append((event["time"], event["time"], event["workers"]))
        elif found and event["time"]:
            found[-1] = (found[-1][0], event["time"], found[-1][2])
    return found


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


def _gpu() -> tuple[str | None, str | None]:
    """Names of the GPUs, and the driver's version."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    rows = [line.rpartition(",") for line in done.stdout.strip().splitlines()]
    return ", ".join(name.strip() for name, _, _ in rows) or None, rows[0][2].strip() if rows else None


def to_json(gathered: dict[str, Any]) -> bytes:
    """The record as it is written to ``provenance.json``."""
    return json.dumps(gathered, indent=1, ensure_ascii=False).encode()
