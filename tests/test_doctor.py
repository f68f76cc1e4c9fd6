"""The doctor and the record of a run's making look at the same machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from speechlab import config, doctor, provenance

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def offline(monkeypatch):
    """No network is tried."""
    monkeypatch.setenv("SPEECHLAB_OFFLINE", "1")


def test_whatever_is_not_well_has_a_remedy(offline):
    checks = list(doctor.examine())
    assert {"python", "torch", "ray", "bf16", "memory", "disk", "cache", "model hub"} <= {c.what for c in checks}
    assert [c for c in checks if c.state != "ok" and not c.remedy] == []
    assert [c for c in checks if c.state == "bad"] == []


def test_what_is_missing_is_bad(offline, monkeypatch):
    def missing(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    found = {c.what: c for c in doctor.examine()}
    assert found["torch"].state == "bad"
    assert found["torch"].remedy == "make setup"


def test_an_empty_cache_is_noted(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path))
    found = {c.what: c for c in doctor.examine()}
    assert found["weights tiny.en"].state == "note"
    assert found["weights tiny.en"].remedy == "speechlab fetch"


def test_too_little_disk_is_bad(offline, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("usage", (), {"free": 10**6}))
    assert {c.what: c for c in doctor.examine()}["disk"].state == "bad"


def test_the_record_holds_all_seven_rows():
    record = provenance.collect(
        config.load("configs/smoke.yaml"), "reports/x/config.yaml", {"manifest_sha256": "ab" * 32}, {"name": "tiny.en", "sha256": "cd"}
    )
    assert {"code", "configuration", "data", "weights", "dependencies", "seeds", "hardware"} <= set(record)
    sha = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert record["code"]["git_sha"] == sha
    assert record["dependencies"]["torch"] == "2.11.0"
    assert len(record["dependencies"]["lock_sha256"]) == 64
    assert record["hardware"]["cores"] >= 1
    assert json.loads(provenance.to_json(record)) == record


def test_outside_a_repository_the_commit_is_null(tmp_path):
    assert provenance._git(tmp_path) == {"git_sha": None, "dirty": None}
