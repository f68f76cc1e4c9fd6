"""Decisions about transcripts: lines in a user's file, and what a corpus makes of them."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechlab import corpora
from speechlab.corpora import base, decisions
from speechlab.corpora.decisions import Decision
from speechlab.errors import InputError


@pytest.fixture(scope="module")
def clips(prompts) -> list:
    return list(prompts.cuts["train"])[:16]


def said(cut) -> str:
    return cut.supervisions[0].text


line_text = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1).filter(str.strip)
any_decision = st.builds(Decision, line_text, st.just("fix"), line_text, line_text) | st.builds(
    Decision, line_text, st.sampled_from(["accept", "drop"]), st.just(""), line_text
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_decision, max_size=4))
def test_decisions_are_read_as_they_were_made(tmp_path, made):
    path = tmp_path / "decisions.jsonl"
    path.unlink(missing_ok=True)
    for decision in made:
        decisions.decide(path, decision)
    assert decisions.read(path) == {decision.id: decision for decision in made}


def test_the_last_decision_counts_and_the_first_stays_on_record(tmp_path):
    path = tmp_path / "decisions.jsonl"
    decisions.decide(path, Decision("a", "drop"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # an editor left no newline
    decisions.decide(path, Decision("a", "fix", "così è", "cosi e"))
    assert decisions.read(path) == {"a": Decision("a", "fix", "così è", "cosi e")}
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"id": "a", "verdict": "drop"},
        {"id": "a", "verdict": "fix", "text": "così è", "reference": "cosi e"},
    ]
    assert decisions.read(tmp_path / "none.jsonl") == {}


def test_two_people_at_once_lose_nothing(tmp_path):
    path = tmp_path / "decisions.jsonl"

    def many(name: str) -> None:
        for i in range(15):
            decisions.decide(path, Decision(f"{name}{i}", "accept"))

    people = [threading.Thread(target=many, args=(name,)) for name in "ab"]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
    assert len(decisions.read(path)) == 30


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Line 2 of d.jsonl is no decision"),
        ("[]", "no object of texts"),
        ('{"id": "a"}', "no object of texts with id and verdict"),
        ('{"id": 1, "verdict": "drop"}', "no object of texts"),
        ('{"id": "a", "verdict": "dropp"}', 'verdict is not known(.|\n)*did you mean "drop"'),
        ('{"id": "a", "verdict": "fix"}', "the words that are said"),
        ('{"id": "a", "verdict": "accept", "text": "b"}', "only a fix has one"),
        ('{"id": "a", "verdict": "drop", "by": "me"}', "unknown fields(.|\n)*by"),
        ('{"id": "", "verdict": "drop"}', "names no clip"),
        ('{"id": "a", "verdict": "fix", "text": "b\\nc"}', r"U\+000A"),
        ('{"id": "a", "verdict": "fix", "text": "\\ud800"}', r"U\+D800"),
        ("[" * 100_000, "Line 2"),
    ],
)
def test_a_line_that_is_no_decision_is_named(tmp_path, line, says):
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "ok", "verdict": "drop"}\n' + line + "\n", "utf-8")
    with pytest.raises(InputError, match=says):
        decisions.read(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="Line 2"):
        decisions.decide(path, Decision("b", "drop"))
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=r"Line 1 of d\.jsonl"):
        decisions.read(path)


def test_decisions_are_carried_out(clips):
    cuts, texts = clips[:5], [said(c) for c in clips[:5]]
    made = {
        cuts[0].id: Decision(cuts[0].id, "fix", "what is said", texts[0]),
        cuts[1].id: Decision(cuts[1].id, "drop"),
        cuts[2].id: Decision(cuts[2].id, "accept", "", texts[2]),
        cuts[3].id: Decision(cuts[3].id, "fix", "never to be seen", "an older transcript"),
        "elsewhere": Decision("elsewhere", "drop"),
    }
    applied = decisions.apply(cuts, made)
    assert [said(c) for c in applied.cuts] == ["what is said", texts[2], texts[3], texts[4]]
    assert [row.id for row in applied.set_aside] == [cuts[1].id] and "decision" in applied.set_aside[0].reason
    assert (applied.fixed, applied.stale, applied.unknown) == ([cuts[0].id], [cuts[3].id], ["elsewhere"])
    assert [said(c) for c in cuts] == texts  # nothing mutates
    assert len(applied.cuts) + len(applied.set_aside) == len(cuts)
    lines = [json.loads(line) for line in base.manifest(applied.cuts)]
    assert lines[0]["text"] == "what is said" and lines[0]["audio"] == cuts[0].custom["audio"]
    assert np.array_equal(corpora.load_audio(applied.cuts[0]), corpora.load_audio(cuts[0]))
    assert decisions.apply(cuts, {}).cuts == cuts


def test_a_corpus_takes_decisions_into_account(prompts, tmp_path):
    path = tmp_path / "decisions.jsonl"
    before = corpora.prepare("prompts", limit=8)
    first, second, *_ = before.cuts["train"]
    decisions.decide(path, Decision(first.id, "fix", "what is said", said(first)))
    decisions.decide(path, Decision(second.id, "drop"))
    decisions.decide(path, Decision("elsewhere", "drop"))
    after = corpora.prepare("prompts", limit=8, decisions=str(path))
    texts = {c.id: said(c) for c in after.cuts["train"]}
    assert texts[first.id] == "what is said"
    assert second.id not in texts
    assert {row.id for row in after.set_aside} - {row.id for row in before.set_aside} == {second.id}
    assert after.manifest_sha256 != before.manifest_sha256
    assert after.notes["decisions"] == {"fixed": 1, "dropped": 1, "stale": 0, "unknown": 1}
    with pytest.raises(InputError, match="decisions"):
        corpora.prepare("prompts", decisions=str(tmp_path / "nowhere.jsonl"))
