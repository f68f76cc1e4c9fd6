"""What is known of all runs: kept until something changes, and compared only where the same was heard."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import pytest
from evaluated import AFTER, PERFECT, made
from reported import filled, pageof, rows

from speechlab import evaluation, ledger
from speechlab.comparison import compare, judge
from speechlab.runs import Run


@pytest.mark.parametrize("change", [{"normaliser": "raw"}, {"ids": True}, {"heard_sha256": "8" * 64}])
def test_other_clips_texts_or_normalisers_are_another_test(tmp_path, change):
    one = made("finetuned", "silence", PERFECT)
    other = (
        replace(one, rows=one.rows.assign(id=list("abcx")))
        if change.get("ids")
        else replace(one, **{k: v for k, v in change.items() if k == "heard_sha256"})
    )
    rates = [ledger._rate(e, name, 100, 0) for e, name in ((one, "english"), (other, change.get("normaliser", "english")))]
    assert ledger.difference(*rates) == ("–", "other clips: not to be compared")
    assert ledger.difference(rates[0], rates[0])[1] == "OK", "control"


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    root = filled(tmp_path)
    whole = rows(pageof(root), "runs")
    seen: list[str] = []
    read = ledger.read
    monkeypatch.setattr(ledger, "read", lambda path: (seen.append(path.name), read(path))[1])
    assert rows(pageof(root), "runs") == whole and seen == []
    time.sleep(0.01)
    evaluation.save(root / "first" / "evaluations", replace(AFTER, context="silence", heard_sha256="7" * 64))
    shutil.rmtree(root / "plain")
    with Run(root / "second").lock():  # its driver may die without a word, so a running one is looked at each time
        changed = rows(pageof(root), "runs")
        seen_once = sorted(seen)
        pageof(root)
    assert seen_once == ["first", "second"] and sorted(seen) == ["first", "second", "second"]
    assert len(changed) == 4 and len(json.loads((root / ledger.KEPT).read_text())) == 4
    for damage in ("", "{", "[]", '{"first": {"marks": [], "run": {}}}', '{"first": 1}'):
        (root / ledger.KEPT).write_text(damage)
        assert len(rows(pageof(root), "runs")) == 4


def test_rates_of_one_speaker_and_of_several_are_judged_as_compare_does():
    one = [made("a", "full", ["Please press two.", "Thank", "Goodbye now.", "The number is 21."]), made("b", "full", PERFECT)]
    for speakers in (["x"] * 4, list("xxyy")):
        a, b = (replace(e, rows=e.rows.assign(speaker=speakers)) for e in one)
        expected = judge(compare(a.scores("english"), b.scores("english"), 1000, 3))
        points, kind = ledger.difference(*(ledger._rate(e, "english", 1000, 3) for e in (a, b)), seed=3)
        assert kind == expected.kind and points.endswith(f"[{expected.interval.low:+.2f}, {expected.interval.high:+.2f}]")
