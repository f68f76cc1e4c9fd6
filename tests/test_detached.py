"""A command that outlives the process that starts it."""

from __future__ import annotations

import os
import subprocess
import sys

from browser import becomes

from speechlab import detached


def test_a_command_runs_in_a_session_of_its_own_and_what_it_says_is_kept(tmp_path):
    assert detached.said(tmp_path) == ""
    process = detached.start(tmp_path, "--help")
    assert os.getsid(process.pid) != os.getsid(0)
    assert process.wait(60) == 0
    log = (tmp_path / "driver.log").read_text()
    assert "Train, evaluate" in log and log.endswith(detached.said(tmp_path))
    failing = detached.start(tmp_path, "train", "--config", "nowhere.yaml")
    assert failing.wait(60) != 0
    assert "nowhere.yaml" in detached.said(tmp_path)


def test_it_goes_on_when_its_starter_is_killed(tmp_path):
    starter = "import sys; from pathlib import Path; from speechlab import detached; detached.start(Path(sys.argv[1]), '--help')"
    process = subprocess.Popen([sys.executable, "-c", starter + "; import os; os.kill(os.getpid(), 9)", str(tmp_path)])
    assert process.wait(60) == -9
    log = tmp_path / "driver.log"
    assert becomes(lambda: log.exists() and "Train, evaluate" in log.read_text())
