"""What the doctor finds, and what it says to do."""

from __future__ import annotations

import pytest

from speechlab import doctor
from speechlab.users import Users


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


def test_who_may_log_in_is_counted_and_a_file_that_others_read_is_bad(offline, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = {c.what: c for c in doctor.examine()}
    assert "this machine only" in found["login of the pages"].found
    users = Users()
    users.put("ann", "operator", None)
    assert doctor._pages().found.startswith("1 users, 1 of them operators")
    users.path.chmod(0o644)
    assert doctor._pages().state == "bad" and doctor._pages().remedy == f"chmod 600 {users.path}"
