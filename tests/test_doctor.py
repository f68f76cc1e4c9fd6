"""What the doctor finds, and what it says to do."""

from __future__ import annotations

import pytest

from speechlab import doctor


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
