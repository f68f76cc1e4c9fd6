"""The record of a run: complete by its schema, with a patch that brings the code back, and readable where it is older."""

from __future__ import annotations

import hashlib
import json
import subprocess
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechlab import config, corpora, provenance, runs
from speechlab.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
START = SimpleNamespace(name="tiny.en", source="cache", sha256="c" * 64, revision=None, licence="MIT")
# as the lab wrote it before: no patch, no manifest, no packages
OLD = {
    "code": {"git_sha": "a" * 40, "dirty": True},
    "command": "speechlab report --config reports/x/config.yaml",
    "configuration": {"signature": "884e1d72fcee"},
    "data": {"manifest_sha256": "e" * 64, "licence": "", "attribution": ""},
    "weights": {"name": "tiny.en", "source": "cache", "sha256": "d" * 64, "revision": None, "licence": "MIT"},
    "dependencies": {"lock_sha256": "b" * 64, "python": "3.11.7", "torch": "2.11.0"},
    "seeds": {"seed": 1, "rule": "plan, context and noise each derive from (seed, epoch, clip or step)"},
    "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_bytes": 1, "gpu": None, "platform": "Linux"},
}


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace").strip()


@pytest.fixture
def begun(tmp_path, prompts) -> runs.Run:
    """A run of two sittings, with the record as its workers write it."""
    run = runs.Run.create(config.load("configs/smoke.yaml", ["corpus.limit=3"]), tmp_path)
    corpus = corpora.configured(run.config.corpus)
    provenance.keep(run, corpus, START, 1, "cpu")
    step = {"kind": "step", "audio_seconds": 10.0, "loss": 1.0}
    events = [{"kind": "start", "workers": 1}, step | {"step": 1, "memory_bytes": 7}]
    events += [{"kind": "checkpoint", "step": 1, "digest": "1" * 64}, {"kind": "start", "workers": 2, "resumed_from": 1}]
    events += [step | {"step": 2, "memory_bytes": 5}, {"kind": "checkpoint", "step": 2, "digest": "2" * 64}, {"kind": "end", "step": 2}]
    times = (100.0, 101.0, 103.0, 200.0, 204.0, 205.0, 206.0)
    lines = [json.dumps({"time": time} | event) + "\n" for time, event in zip(times, events, strict=True)]
    (run.path / "events.jsonl").write_text("".join(lines))
    return run


def test_a_record_is_complete_and_every_row_is_required(begun):
    whole = provenance.record(begun)
    assert provenance.missing(whole) == []
    assert set(provenance.ROWS) <= set(whole)
    for row in provenance.SCHEMA["required"]:
        less = {name: value for name, value in whole.items() if name != row}
        assert provenance.missing(less) == [f"{row}: missing"]
        for field in provenance.SCHEMA["properties"][row].get("required", []):
            less = deepcopy(whole)
            del less[row][field]
            assert provenance.missing(less) == [f"{row}.{field}: missing"]
    wrong = deepcopy(whole)
    wrong["weights"]["chain"][1]["digest"] = "f00"
    assert [line.split(":")[0] for line in provenance.missing(wrong)] == ["weights.chain.1.digest"]


def test_the_rows_say_what_is_so(begun):
    import torch

    whole = provenance.record(begun)
    assert json.loads(provenance.to_json(whole)) == whole
    assert whole["code"]["git_sha"] == git(ROOT, "rev-parse", "HEAD")
    assert whole["configuration"] == {
        "signature": begun.config.signature,
        "sha256": provenance.config_sha256(begun.config),
        "file": "config.yaml",
    }
    packages = (begun.path / "packages.txt").read_bytes()
    assert whole["dependencies"]["packages_sha256"] == hashlib.sha256(packages).hexdigest()
    assert b"torch==2.11.0\n" in packages and whole["dependencies"]["torch"] == "2.11.0"
    assert whole["dependencies"]["lock_sha256"] == hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()
    assert whole["hardware"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert whole["execution"]["threads"] == torch.get_num_threads()
    assert whole["normaliser"].startswith("english ")
    assert [link["step"] for link in whole["weights"]["chain"]] == [1, 2] and whole["weights"]["final_sha256"] == "2" * 64
    assert whole["time"] == {"start": 100.0, "end": 206.0}
    # two sittings, three seconds by one worker and six by two; the time between them costs nothing
    assert whole["cost"] == {"seconds": 9.0, "worker_seconds": 15.0, "steps": 2, "audio_seconds": 20.0, "peak_memory_bytes": 7}


def test_the_manifest_is_kept_with_a_digest_for_every_clip(begun):
    lines = provenance.clips(begun)
    assert lines == corpora.configured(begun.config.corpus).manifest
    assert all(json.loads(line)["audio"].startswith("pcm-sha256:") for line in lines)
    path = begun.path / "manifest.jsonl.gz"
    kept = path.read_bytes()
    path.write_bytes(kept[:-20])
    with pytest.raises(InputError, match="manifest cannot be read"):
        provenance.clips(begun)
    path.write_bytes(kept)
    (begun.path / "provenance.json").write_text(json.dumps({"data": {"manifest_sha256": "0" * 64}}))
    with pytest.raises(InputError, match="is not the one of its record"):
        provenance.clips(begun)


def test_an_older_record_is_read_and_what_it_lacks_is_named(tmp_path):
    run = runs.Run.create(config.load("configs/smoke.yaml"), tmp_path)
    assert provenance.record(run)["state"] == "new" and len(provenance.missing(provenance.record(run))) > 5
    (run.path / "provenance.json").write_text(json.dumps(OLD))
    whole = provenance.record(run)
    assert {name: whole[name] for name in OLD if name != "weights"} == {name: OLD[name] for name in OLD if name != "weights"}
    lacking = provenance.missing(whole)
    assert {"code.patch: missing", "hardware.capability: missing", "execution: missing"} <= set(lacking)
    assert not [line for line in lacking if "git_sha" in line]
    assert provenance.clips(run) is None


def test_the_packages_are_listed_once_a_record(begun, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(provenance, "installed", lambda: asked.append("") or "torch==2.11.0\n")
    provenance.keep(begun, corpora.configured(begun.config.corpus), START, 1, "cpu")
    assert len(asked) == 1 and (begun.path / "packages.txt").read_text() == "torch==2.11.0\n"
    assert begun.provenance["dependencies"]["packages_sha256"] == hashlib.sha256(b"torch==2.11.0\n").hexdigest()
