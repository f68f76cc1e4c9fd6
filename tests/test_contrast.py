"""Two runs side by side: that the numbers are those of the comparison, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from browser import EVIL_TEXT
from evaluated import AFTER, PERFECT, made
from sidelong import evaluated, trained
from test_plots import live_markup

from speechlab import contrast, evaluation, text
from speechlab.comparison import compare
from speechlab.contrast import Contrast, by_condition_html, rows, side, systems
from speechlab.errors import InputError

WORSE = made("finetuned", "silence", ["Please press two.", "Thank", "Goodbye now.", "The number is 21."])


@pytest.fixture
def runs(tmp_path):
    """Two evaluated runs, of which the second is worse; only the first was heard in noise."""
    first, second = trained(tmp_path, "first"), trained(tmp_path, "second")
    evaluated(first)
    evaluated(second)
    evaluation.save(second.path / "evaluations", WORSE)
    noisy = made("finetuned", "silence", PERFECT, condition="white-10db")
    evaluation.save(first.path / "evaluations", noisy)
    for run, words in ((first, ""), (second, "you")):
        evaluation.save(run.path / "evaluations", made("finetuned", "silence", [words] * 4, condition="silence"))
    return first, second


def test_the_difference_is_that_of_the_comparison(runs):
    a, b = (side(run) for run in runs)
    assert a.heard["clean"].context == "silence", "the usual context before others"
    found = {row.condition: row for row in rows(a, b)}
    clean = found["clean"]
    want = compare(replace(AFTER, context="silence").scores("english"), WORSE.scores("english"))
    assert clean.found == want
    assert clean.found.points > 0
    assert clean.verdict.kind in ("REGRESSED", "INCONCLUSIVE")
    assert (clean.a.split()[0], clean.b.split()[0]) == ("10.00", "30.00")
    back = next(iter(rows(b, a)))
    assert back.found.points == -clean.found.points


def test_what_cannot_be_compared_says_why_and_hides_no_other(runs):
    a, b = (side(run) for run in runs)
    found = {row.condition: row for row in rows(a, b)}
    assert next(iter(found)) == "clean"
    assert "only first-" in found["white-10db"].why
    assert found["silence"].why == "nothing was said in it"
    assert (found["silence"].a, found["silence"].b) == ("0 words made up", "4 words made up")
    fewer = replace(b.heard["clean"], rows=b.heard["clean"].rows.iloc[:3])
    other = replace(b.heard["clean"], rows=b.heard["clean"].rows.assign(id=list("abcx")))
    texts = replace(b.heard["clean"], rows=b.heard["clean"].rows.assign(reference="something else"))
    for changed in (fewer, other, texts):
        (clean, *_) = rows(a, contrast.Side("b", {"clean": changed}))
        assert clean.found is None
        assert clean.why


def test_a_run_is_compared_with_what_it_began_with(runs):
    first, _ = runs
    assert systems(first) == ["finetuned", "pretrained"]
    before, after = side(first, "pretrained"), side(first)
    assert (before.name, after.name) == (f"{first.id}, before training", f"{first.id}, finetuned")
    assert Contrast(before, after).first.found.points < 0


def test_a_system_that_is_not_there_is_an_input_error(runs, tmp_path):
    with pytest.raises(InputError, match=r"no evaluation of that system[\s\S]*got: +teacher[\s\S]*finetuned, pretrained"):
        side(runs[0], "teacher")
    with pytest.raises(InputError, match=r"nothing evaluated[\s\S]*speechlab evaluate"):
        side(trained(tmp_path, "bare"))


def test_the_page_says_verdict_tests_and_conditions(runs):
    shown = Contrast(*(side(run) for run in runs), resamples=200)
    page = " ".join(part.value for part in shown.static() if hasattr(part, "value"))
    assert "+20.00 points" in page
    assert "sign-flip over speakers" in page
    assert all(name in page for name in ("clean", "white-10db", "silence"))
    nothing = Contrast(contrast.Side("a", {}), contrast.Side("b", {"clean": WORSE})).static()
    assert "no condition in which they can be compared" in " ".join(part.value for part in nothing)


def test_no_name_becomes_markup(monkeypatch):
    def page() -> list[str]:
        shown = Contrast(contrast.Side(EVIL_TEXT, {EVIL_TEXT: WORSE}), contrast.Side("b", {"clean": WORSE})).static()
        return live_markup(" ".join(part.value for part in shown if hasattr(part, "value")))

    assert page() == []
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert page()


def test_the_table_has_a_row_a_condition(runs):
    a, b = (side(run) for run in runs)
    assert by_condition_html(rows(a, b)).count("<tr>") == 1 + 3
