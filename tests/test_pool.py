"""Work in processes that die, raise, or are not needed."""

from __future__ import annotations

import os
import time

import pytest

from speechlab import pool


def square(n: int) -> int:
    if n == 13:
        os.abort()
    if n == 17:
        raise ValueError("seventeen")
    return n * n


def slow(n: int) -> int:
    time.sleep(0.01 * (n % 3))
    return n


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order(workers):
    assert list(pool.over(slow, range(20), workers)) == [(n, n) for n in range(20)]
    assert list(pool.over(slow, [], workers)) == []


def test_items_are_taken_a_few_ahead():
    taken = []
    results = pool.over(slow, (taken.append(n) or n for n in range(1000)), 2)
    next(results)
    assert len(taken) <= 2 * pool.AHEAD
    results.close()


@pytest.mark.slow
def test_who_kills_a_process_is_named_and_all_others_are_done():
    out = dict(pool.over(square, range(16), 2))
    assert isinstance(out.pop(13), pool.Crashed)
    assert out == {n: n * n for n in range(16) if n != 13}


def test_an_error_is_the_callers():
    with pytest.raises(ValueError, match="seventeen"):
        list(pool.over(square, [16, 17, 18], 1))


def test_cores_are_those_that_may_be_used():
    assert 1 <= pool.cores() <= os.cpu_count()
