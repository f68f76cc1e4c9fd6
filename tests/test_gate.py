"""The gate: each verdict with its exit status, page and JUnit file; what it refuses; and that texts stay texts."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as xml

import pandas as pd
import pytest
from browser import EVIL_TEXT, on_a_telephone
from bs4 import BeautifulSoup
from evaluated import PERFECT, experiment, made
from hypothesis import given
from hypothesis import strategies as st
from released import finished
from typer.testing import CliRunner

from speechlab import cli, config, corpora, evaluation, features, gate, registry, text, utterances
from speechlab.errors import InputError
from speechlab.evaluation import Evaluation
from speechlab.models import inference
from speechlab.scoring import score

SETTINGS = experiment().evaluation
WORSE = ["Please press two.", "Thank", "Goodbye", "The number is 21."]


def many(system: str, hypotheses: list[str], times: int = 40, condition: str = "clean", **more: object) -> Evaluation:
    """The four clips again and again, each time by two other speakers."""
    one = made(system, "full", hypotheses, condition, **more)
    parts = [one.rows.assign(id=[f"{i}{n}" for i in one.rows.id], speaker=[f"{s}{n}" for s in one.rows.speaker]) for n in range(times)]
    return replace(one, rows=pd.concat(parts, ignore_index=True))


def judged(candidate: Evaluation, baseline: Evaluation, **how: object) -> gate.Gate:
    return gate.judge("new", [candidate], "old", [baseline], SETTINGS, 1, **how)


OK = judged(many("b", PERFECT), many("a", WORSE))
REGRESSED = judged(many("b", WORSE), many("a", PERFECT))
INCONCLUSIVE = judged(made("b", "full", [*PERFECT[:3], "the number is 22"]), made("a", "full", PERFECT))
EVERY = {"OK": OK, "REGRESSED": REGRESSED, "INCONCLUSIVE": INCONCLUSIVE}


# elements of JUnit XML as Jenkins' junit-10 and pytest's xunit2 have them: attributes that must be there, that may, and children
SHAPE = {
    "testsuites": ("", "name time tests failures errors", "testsuite"),
    "testsuite": (
        "name tests failures errors",
        "time skipped timestamp hostname id package file",
        "properties testcase system-out system-err",
    ),
    "properties": ("", "", "property"),
    "property": ("name value", "", ""),
    "testcase": ("name", "time classname group", "skipped error failure system-out system-err"),
    **dict.fromkeys(("skipped", "failure", "error"), ("", "type message", "")),
    **dict.fromkeys(("system-out", "system-err"), ("", "", "")),
}


def misshapen(element: xml.Element) -> list[str]:
    """What of an element is not as :data:`SHAPE` has it."""
    needed, allowed, children = (set(names.split()) for names in SHAPE[element.tag])
    wrong = [f"{element.tag}: no {name}" for name in needed - set(element.attrib)]
    wrong += [f"{element.tag}: {name}" for name in set(element.attrib) - needed - allowed]
    wrong += [f"{element.tag}: <{child.tag}>" for child in element if child.tag not in children]
    return wrong + [line for child in element if child.tag in children for line in misshapen(child)]


@pytest.mark.parametrize("kind", EVERY)
def test_junit_has_the_shape_that_its_readers_know(kind):
    root = xml.fromstring(gate.junit(EVERY[kind]))
    assert root.tag == "testsuites" and misshapen(root) == []
    root.set("skipped", "0")
    del root[0].attrib["name"]
    xml.SubElement(root[0][1], "verdict")
    assert sorted(misshapen(root)) == ["testcase: <verdict>", "testsuite: no name", "testsuites: skipped"]


@pytest.mark.parametrize("kind", EVERY)
def test_each_verdict_is_on_the_page_and_in_junit(kind):
    found = EVERY[kind]
    assert found.kind == kind and found.text.startswith(kind)
    page = BeautifulSoup(gate.page(found), "html.parser")
    assert page.title.text == f"Gate: {kind}" and page.select_one(".verdict")["class"] == ["verdict", kind]
    assert ("An answer would take about" in page.text) == (kind == "INCONCLUSIVE")
    assert found.heard_sha256 in page.text and "margin 0.5" in page.text and len(page.find_all("svg")) == 1
    suite = xml.fromstring(gate.junit(found)).find("testsuite")
    (case,) = suite.findall("testcase")
    assert [case.find(tag) is not None for tag in ("failure", "skipped")] == [kind == "REGRESSED", kind == "INCONCLUSIVE"]
    counts = {"REGRESSED": ("1", "0"), "INCONCLUSIVE": ("0", "1"), "OK": ("0", "0")}[kind]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("1", *counts)
    assert case.find("system-out").text == found.text
    if kind == "INCONCLUSIVE":
        assert f"{found.judged[0].verdict.needed:,} utterances" in case.find("skipped").get("message")


def test_the_worst_losses_are_shown_aligned():
    found = REGRESSED.judged[0]
    assert list(found.losses.change[:2]) == [1, 1] and len(found.losses) == 80
    page = BeautifulSoup(gate.page(REGRESSED), "html.parser")
    assert "with more errors than before: 80; with fewer: 0; with as many: 80. The 20 worst are shown." in page.text
    rows = page.select("table.samples tbody tr")
    assert len(rows) == 20 and rows[0].select_one(".sub s").text == "one" and rows[0].select_one(".sub u").text == "2"
    assert "no word error" not in page.text and "a0: 0 to 1 errors" in gate.junit(REGRESSED).decode()
    assert "with more errors than before: 0" in BeautifulSoup(gate.page(OK), "html.parser").text


def test_the_margin_decides():
    assert judged(many("b", WORSE), many("a", PERFECT), margin=50).kind == "OK"
    slight = many("b", PERFECT), many("a", PERFECT)
    assert judged(*slight, margin=0).kind == "OK", "equal answers have an interval of nothing"
    with pytest.raises(InputError, match="margin cannot be used"):
        judged(*slight, margin=-1)


def test_of_several_conditions_the_worst_decides():
    noisy = {"condition": "gsm", "heard_sha256": "2" * 64}
    clean, loud = (many("b", PERFECT), many("a", WORSE)), (many("b", WORSE, **noisy), many("a", PERFECT, **noisy))
    both = gate.judge("new", [clean[0], loud[0]], "old", [clean[1], loud[1]], SETTINGS)
    assert both.kind == "REGRESSED" and both.text.endswith("(under gsm)")
    assert [j.verdict.kind for j in both.judged] == ["OK", "REGRESSED"]
    assert both.heard_sha256 not in ("1" * 64, "2" * 64)
    assert gate.heard([loud[0], clean[0]]) == both.heard_sha256, "whatever their order"
    page = BeautifulSoup(gate.page(both), "html.parser")
    assert [b.text for b in page.select(".verdict b")] == ["✓ OK under clean", "✗ REGRESSED under gsm"]
    assert xml.fromstring(gate.junit(both)).get("tests") == "2"


def test_what_is_heard_is_frozen():
    pair = many("b", PERFECT), many("a", PERFECT)
    assert judged(*pair, frozen="1" * 64).kind == judged(*pair, frozen="1" * 12).kind == "OK"
    with pytest.raises(InputError, match=f"not those of the frozen set(.|\n)*got: +{'1' * 64}\n +expected: {'2' * 64}"):
        judged(*pair, frozen="2" * 64)
    with pytest.raises(InputError, match="at least 12 digits"):
        judged(*pair, frozen="1")
    with pytest.raises(InputError, match=f"did not hear the same clips(.|\n)*new: {'3' * 64}(.|\n)*old: {'1' * 64}"):
        judged(replace(pair[0], heard_sha256="3" * 64), pair[1])


def test_what_cannot_be_judged_says_why():
    pair = many("b", PERFECT), many("a", PERFECT)
    with pytest.raises(InputError, match="could not be read(.|\n)*1 of new under clean, such as z"):
        judged(replace(pair[0], broken={"z": "cut off"}), pair[1])
    with pytest.raises(InputError, match="same conditions(.|\n)*gsm(.|\n)*clean"):
        judged(replace(pair[0], condition="gsm"), pair[1])
    silent = (made(s, "full", ["", "", "", ""], "silence") for s in "ba")
    with pytest.raises(InputError, match="no word error rate(.|\n)*silence"):
        judged(*silent)


EVIL = EVIL_TEXT + " \x00\x1b[31m\x0b \ufffe\uffff \u202e ]]> &amp; --> "


def test_texts_become_neither_markup_nor_broken_xml(tmp_path):
    one, other = made("b", "full", [EVIL, EVIL, "", ""]), made("a", "full", PERFECT)
    named = {"id": [EVIL + i for i in "abcd"], "reference": [f"{EVIL} {n}" for n in range(4)]}
    raw = SETTINGS.model_copy(update={"normaliser": "raw"})
    both = [replace(e, rows=e.rows.assign(**named)) for e in (one, other)]
    found = gate.judge(EVIL, both[:1], EVIL, both[1:], raw, margin=0)
    root = xml.fromstring(gate.junit(found))
    assert root.find(".//property").get("value").startswith(EVIL_TEXT + " [U+0000][U+001B][31m[U+000B]")
    path = tmp_path / "gate.html"
    path.write_bytes(gate.page(found).encode("utf-8", "replace"))
    page = BeautifulSoup(path.read_text(), "html.parser")
    assert not page.find_all(["script", "img"]) and EVIL_TEXT in page.text and len(page.find_all("svg")) == 1
    assert len(list(on_a_telephone(path))) == 2


@given(st.text(st.characters(codec=None), max_size=30))
def test_any_text_is_legal_xml(text):
    element = xml.Element("x", {"y": gate._legal(text)})
    element.text = gate._legal(text)
    found = xml.fromstring(xml.tostring(element, encoding="utf-8"))
    assert (found.text or "") == gate._legal(text) and len(found.get("y")) >= len(text)


# --- from a shell ----------------------------------------------------------------------------------------------


@pytest.fixture
def reports(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(config, "reports", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def answers(reports) -> dict[str, str]:
    """Everybody's answers to the English test clips: right, with every fourth wrong, with one wrong."""
    values = experiment(latency=False).model_dump()
    values["corpus"]["limit"] = None
    settings = config.validate(values, "test")
    (reports / "gate.yaml").write_text(settings.to_yaml())
    said = {cut.id: cut.supervisions[0].text for cut in corpora.configured(settings.corpus).cuts["test"]}
    wrong = {"right": lambda n: False, "worse": lambda n: n % 4 == 0, "slightly": lambda n: n < 4}
    for name, when in wrong.items():
        table = pd.DataFrame({"id": list(said), "text": [f"{t} zebra" if when(n) else t for n, t in enumerate(said.values())]})
        table.to_csv(reports / f"{name}.csv", index=False)
    return {name: str(reports / f"{name}.csv") for name in wrong}


def shell(reports: Path, candidate: str, baseline: str, *more: str) -> tuple[int, str]:
    arguments = ["gate", "--candidate", candidate, "--baseline", baseline, "--config", str(reports / "gate.yaml"), *more]
    result = CliRunner().invoke(cli.app, arguments)
    return (2 if isinstance(result.exception, InputError) else result.exit_code), result.output + str(result.exception or "")


def test_a_verdict_is_an_exit_status_and_two_files(reports, answers):
    for candidate, code, kind in (("right", 0, "OK"), ("worse", 1, "REGRESSED"), ("slightly", 3, "INCONCLUSIVE")):
        baseline = "worse" if candidate == "right" else "right"
        found, said = shell(reports, answers[candidate], answers[baseline])
        assert found == code and any(line.startswith(kind) for line in said.splitlines()), said
        assert kind in (reports / "gate" / "gate.html").read_text()
        assert xml.parse(reports / "gate" / "junit.xml").find(".//system-out").text.startswith(kind)
    heard = next(line for line in said.splitlines() if line.startswith("heard: ")).split()[1]
    assert shell(reports, answers["worse"], answers["right"], "--frozen", heard[:12])[0] == 1
    code, said = shell(reports, answers["worse"], answers["right"], "--frozen", "0" * 64, "--out", str(reports / "gate"))
    assert code == 2 and heard in said and "0" * 64 in said
    assert not (reports / "gate" / "junit.xml").exists(), "no earlier verdict is left to be read for this one"
    assert shell(reports, answers["worse"], str(reports / "nobody.csv"))[0] == 2


@pytest.mark.slow
def test_a_run_against_the_champion_and_nothing_is_measured_twice(reports, small_whisper, monkeypatch):
    (reports / "gate.yaml").write_text(experiment(str(small_whisper), latency=False).to_yaml())
    run = finished(reports, small_whisper, record={})
    registry.register(run, "m")
    registry.promote("m")
    first, said = shell(reports, run.id, "models:/m@champion")
    assert first == 0 and "OK: +0.00 points" in said, "the same weights"
    measured: list[str] = []
    evaluate = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda system, *a, **k: (measured.append(system.name), evaluate(system, *a, **k))[1])
    assert shell(reports, run.id, "models:/m@champion")[0] == 0 and measured == []
    evaluation.evaluate_run(run, ["clean"], progress=False)
    measured.clear()
    assert shell(reports, run.id, "models:/m@champion", "--out", str(reports / "other"))[0] == 0
    assert set(measured) == {"m.champion"}, "what the run knows of itself is taken over"


# --- the project's own gate ------------------------------------------------------------------------------------


def own_gate(root: Path) -> list[str]:
    """The arguments of the command that ``make gate``, and so ``.ci/run``, runs."""
    makefile = (root / "Makefile").read_text()
    frozen = re.search(r"^FROZEN := (\S+)$", makefile, re.M).group(1)
    recipe = re.search(r"^gate: setup\n\t@\$\(BIN\)/speechlab (gate .*)$", makefile, re.M).group(1)
    return shlex.split(recipe.replace("$(FROZEN)", frozen))


def test_ci_runs_the_gate_on_a_frozen_set_whose_hash_is_checked_in(root, prompts, monkeypatch):
    assert (root / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    assert re.search(r"^test: .*\n(\t.*\n)*\t@\$\(MAKE\) --no-print-directory gate\n", (root / "Makefile").read_text(), re.M)
    asked = own_gate(root)
    monkeypatch.chdir(root)
    settings = config.load(asked[asked.index("--config") + 1])
    frozen, recorded = asked[asked.index("--frozen") + 1], utterances.read(asked[asked.index("--baseline") + 1], "hypothesis").texts
    assert evaluation.prepare("clean", corpora.configured(settings.corpus), settings).sha256 == frozen and len(frozen) == 64
    said = {cut.id: cut.supervisions[0].text for cut in prompts.cuts["test"]}
    assert set(recorded) == set(said) and len(said) == 127
    # what was recorded is what the README measured of tiny.en: 6.10 %
    found = score(list(said.values()), [recorded[i] for i in said], text.normaliser("english"))
    assert (found.substitutions, found.deletions, found.insertions) == (30, 4, 9) and round(100 * found.wer, 2) == 6.1


def own_verdict(root: Path, out: Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [*own_gate(root), "--out", str(out)])
    assert not isinstance(result.exception, InputError), result.exception
    return result.exit_code, result.output


@pytest.mark.slow
def test_the_project_s_decoder_passes_its_own_gate(root, tmp_path, tiny_en, monkeypatch):
    monkeypatch.chdir(root)
    code, said = own_verdict(root, tmp_path)
    assert code == 0 and "OK: +0.00 points" in said, said


def without_the_last_token(monkeypatch) -> None:
    row = inference._row
    monkeypatch.setattr(inference, "_row", lambda *given: (found := row(*given))._replace(tokens=found.tokens[:-1]))


def half_a_second_late(monkeypatch) -> None:
    mel = features.LogMel.forward
    monkeypatch.setattr(features.LogMel, "forward", lambda *given: mel(*given).roll(-50, -1))


def with_the_answers_of_other_clips(monkeypatch) -> None:
    write = inference.Inference.write
    monkeypatch.setattr(inference.Inference, "write", lambda *given: write(*given)[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [without_the_last_token, half_a_second_late, with_the_answers_of_other_clips])
def test_a_broken_decoder_does_not(damage, root, tmp_path, tiny_en, monkeypatch):
    monkeypatch.chdir(root)
    damage(monkeypatch)
    code, said = own_verdict(root, tmp_path)
    assert code == 1 and "REGRESSED" in said, said
    assert xml.parse(tmp_path / "junit.xml").getroot().get("failures") == "1"
