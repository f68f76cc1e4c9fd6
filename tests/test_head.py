"""How Ray is started. That it does start, is lost and refused, is shown where it is used: test_cluster.py, test_nodes.py."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import ray

from speechlab import head

SLOW = "The current node timed out during startup. This could happen because …"


@pytest.mark.parametrize(("failures", "said", "begun"), [(2, "", 3), (3, "timed out", 3), (1, "no room", 1)])
def test_ray_is_started_again_where_it_was_too_slow_alone(failures, said, begun):
    words = "no room" if said == "no room" else SLOW
    done: list[str] = []

    def start() -> None:
        done.append("start")
        if done.count("start") <= failures:
            raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=said) if said else nullcontext():
        head.patiently(start, lambda: done.append("undo"))
    assert done == ["start", "undo"] * min(failures, begun) + ["start"] * (not said)


def test_what_a_failed_start_leaves_of_ray_is_ended_before_the_next():
    begun: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        # of earlier attempts, Ray's is gone and the other is not
        assert [p.poll() is None for p in begun] == [False, True] * (len(begun) // 2)
        for argument in (str(Path(ray.__file__).parent / "dashboard.py"), "not Ray's"):
            begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", argument]))
        if len(begun) < 6:
            raise RuntimeError(SLOW)

    try:
        head.patiently(start, lambda: None)
        assert [p.poll() is None for p in begun] == [False, True, False, True, True, True]
    finally:
        for process in begun:
            process.kill()
            process.wait()
