"""Runs side by side: tables of hand-made runs, damage that stays where it is, and the Pareto front."""

from __future__ import annotations

import json
import math

import nbformat
import pandas as pd
import pytest
from browser import EVIL
from evaluated import AFTER
from hypothesis import given
from hypothesis import strategies as st
from sidelong import checkpoint, evaluated, experiment, trained
from test_plots import live_markup
from typer.testing import CliRunner

from speechlab import cli, cli_corpus, experiments, markup, report, results, runs, tracking
from speechlab.errors import InputError
from speechlab.runs import Run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two runs that can be compared, of which the second resumed, and one that never began."""
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "reports"
    first = trained(root, "first", optim={"lr": 3.0e-5})
    evaluated(first)
    second = trained(root, "second", (0.4, 0.2, 0.3), model={"family": "conformer"}, seed=2)
    second.append({"kind": "start", "steps": 30, "epochs": 3, "resumed_from": 20})
    second.append({"kind": "step", "step": 21, "epoch": 2, "loss": 1.0, "clips": 4, "step_seconds": 2.0})
    Run.create(experiment("third"), root)
    return root


def row(root, name: str) -> dict:
    (found,) = [r for r in experiments.table(root).to_dict("records") if r["name"] == name]
    return found


# --- the table ---


def test_a_row_says_what_the_run_says(folder):
    first = row(folder, "first")
    (measured,) = results.summary([AFTER], experiment("x").evaluation).to_dict("records")
    assert (first["state"], first["family"], first["weights"], first["label"]) == ("finished", "whisper", "tiny.en", "first")
    assert (first["dev"], first["seconds"], first["clips"]) == (0.25, 40.0, 80)
    assert (first["wer"], first["low"], first["high"]) == (measured["wer"], measured["low"], measured["high"]) and first["wer"] == 0.1
    assert first["rtfx"] == 5.0 and first["heard"].startswith("1" * 12 + ", english")
    run = runs.find(first["id"], folder)
    assert first["signature"] == run.config.signature and first["leaves"] == tracking.flatten(run.config)
    assert first["disk"] == sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file())
    assert abs(first["started"].timestamp() - run.events()[0]["time"]) < 1e-3
    assert first["note"] == ""


def test_what_a_resume_repeats_is_paid_twice_and_what_was_never_measured_is_missing(folder):
    second, third = row(folder, "second"), row(folder, "third")
    assert (second["state"], second["seconds"], second["clips"], second["dev"]) == ("interrupted", 62.0, 124, 0.2)
    assert second["weights"] == "from scratch" and math.isnan(second["wer"])
    assert third["state"] == "new" and math.isnan(third["seconds"]) and pd.isna(third["started"])
    assert list(experiments.table(folder).name) == ["third", "first", "second"]  # the newest last


def test_runs_of_one_name_are_told_apart_by_id(folder):
    trained(folder, "first")
    labels = experiments.table(folder).set_index("id").label
    assert labels.is_unique and sorted(labels[labels.index.str.startswith("first")]) == sorted(
        labels.index[labels.index.str.startswith("first")]
    )


def test_the_mean_of_checkpoints_counts_among_the_validations(folder):
    run = trained(folder, "averaged")
    run.append({"kind": "end", "step": 20, "seconds": 1.0, "best": {"step": 20, "wer": 0.125, "path": "checkpoints/average"}})
    assert row(folder, "averaged")["dev"] == 0.125


def test_an_evaluation_of_other_weights_or_of_an_older_lab_is_remarked_on(folder):
    run = runs.find(row(folder, "first")["id"], folder)
    checkpoint(run, 10, 0.5, digest=AFTER.weights_sha256)
    assert row(folder, "first")["note"] == ""
    checkpoint(run, 20, 0.25, digest="f" * 64)
    assert row(folder, "first")["note"] == f"evaluated before its best checkpoint was made: speechlab evaluate {run.id}"
    for path in (run.path / "evaluations").glob("*.json"):
        path.write_text(json.dumps({"system": "finetuned", "wer": 0.1}))
    old = row(folder, "first")
    assert math.isnan(old["wer"]) and old["note"] == f"evaluated by an older version of the lab: speechlab evaluate {run.id}"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", b"name: [", "not YAML"),
        ("config.yaml", b"name: broken\nquestion: x\noptim: {lrr: 1.0}\n", 'did you mean "lr"?'),
        ("config.yaml", b"\xff\xfe\x00", "UTF-8"),
        ("config.yaml", None, "holds no config.yaml"),
        ("events.jsonl", b'{"kind": "step"}\n', "KeyError: 'step_seconds'"),
        ("evaluations/x--clean--clip.json", b"{", "JSONDecodeError"),
        ("evaluations/finetuned--clean--silence.parquet", b"PAR1", "Arrow"),
    ],
)
def test_a_broken_run_says_so_and_hides_nothing_else(folder, file, content, said):
    before = experiments.table(folder).set_index("id")
    broken = trained(folder, "broken")
    evaluated(broken)
    (broken.path / file).unlink(missing_ok=True)
    if content is not None:
        (broken.path / file).write_bytes(content)
    after = experiments.table(folder).set_index("id")
    assert after.state[broken.id] == "broken" and said in after.note[broken.id] and after.disk[broken.id] > 0
    pd.testing.assert_frame_equal(after.drop(index=broken.id).loc[before.index], before)
    if file != "config.yaml":
        assert after.family[broken.id] == "whisper"  # what was read before the damage stands
    shown = experiments.readable(experiments.table(folder))
    assert len(shown) == len(after) and len(experiments.usage(experiments.table(folder))) == len(after) + 1


def test_folders_that_are_no_runs_are_no_rows(folder):
    (folder / "notebooks").mkdir()
    (folder / "mlflow-artifacts" / "x").mkdir(parents=True)
    (folder / "mlflow-artifacts" / "x" / "config.yaml").write_text("name: x")
    (folder / "alias").symlink_to(row(folder, "first")["path"])
    rows = experiments.table(folder)
    assert len(rows) == 4 and rows.set_index("id").note["alias"].startswith("a link to ")
    empty = experiments.table(folder / "notebooks")
    assert not len(empty) and list(empty) == list(rows)
    for of in (experiments.differences, experiments.comparable, experiments.curves, experiments.by_condition, experiments.readable):
        assert not len(of(empty))
    assert list(experiments.usage(empty).run) == ["all"] and not len(empty.nsmallest(4, "wer"))


# --- chosen, and what differs ---


@pytest.mark.parametrize(
    ("patterns", "where", "names"),
    [
        ([], [], ["third", "first", "second"]),
        (["first"], [], ["first"]),
        (["fi*", "third-*"], [], ["third", "first"]),
        (["latest"], [], ["second"]),
        ([], ["state=finished"], ["first"]),
        ([], ["family=conformer"], ["second"]),
        ([], ["weights=tiny.en", "seed=1"], ["third", "first"]),
        ([], ["optim.lr=3.0e-5"], ["third", "first", "second"]),
        ([], ["optim.lr = 0.00003"], ["third", "first", "second"]),
        ([], ["model.weights=null"], ["second"]),
        ([], ["tracking.enabled=false", "seed=2"], ["second"]),
        (["first"], ["seed=two"], []),
        (["first"], ["corpus.check.set_aside=truncated"], ["first"]),
    ],
)
def test_runs_are_chosen_by_pattern_and_by_value(folder, patterns, where, names):
    assert list(experiments.select(experiments.table(folder), patterns, where).name) == names


def test_what_chooses_nothing_says_what_there_is(folder):
    rows = experiments.table(folder)
    with pytest.raises(InputError, match=r"No run is called so[\s\S]*known: first-"):
        experiments.select(rows, ["nobody"])
    with pytest.raises(InputError, match=r'cannot be used[\s\S]*did you mean "optim.lr"'):
        experiments.select(rows, (), ["optim.lrr=1"])
    with pytest.raises(InputError, match="expected: key=value"):
        experiments.select(rows, (), ["seed"])


def test_only_the_keys_that_differ_are_shown(folder):
    trained(folder, "fourth", augment={"spec": {"frequency_masks": 1}})
    rows = experiments.select(experiments.table(folder), ["first", "fourth"])
    table = experiments.differences(rows).set_index("key")
    assert list(table) == list(rows.id)
    assert set(table.index) == {"name", "augment.spec", *(k for k in rows.leaves[1] if k.startswith("augment.spec."))}
    assert list(table.loc["augment.spec"]) == ["null", ""] and list(table.loc["augment.spec.frequency_masks"]) == ["", "1"]
    same = experiments.differences(rows[:1])
    assert len(same) == 0 and list(same) == ["key", rows.id[0]]


def test_only_what_heard_the_same_clips_is_compared(folder):
    for name, clips in (("other", "2" * 64), ("another", "2" * 64)):
        evaluated(trained(folder, name), heard_sha256=clips)
    assert set(experiments.comparable(experiments.table(folder)).name) == {"other", "another"}
    evaluated(trained(folder, "like-first"))
    assert len(experiments.comparable(experiments.table(folder))) == 2  # of equally large sets the newest
    assert "like-first" in set(experiments.comparable(experiments.table(folder)).name)
    assert not len(experiments.comparable(experiments.table(folder)[:0]))


def test_curves_and_conditions_of_several_runs(folder):
    rows = experiments.table(folder)
    curves = experiments.curves(rows)
    assert list(curves[curves.label == "first"].wer) == [0.5, 0.25] and list(curves[curves.label == "second"].step) == [10, 20]
    heard = experiments.by_condition(rows)
    assert list(heard.system) == ["first"] and heard.context[0] == "silence" and heard.wer[0] == 0.1
    assert len(experiments.by_condition(rows[rows.name == "third"])) == 0 == len(experiments.curves(rows[rows.name == "third"]))


# --- the Pareto front ---

VALUES = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf, math.nan]) | st.floats(0, 10)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=25))
def test_no_returned_run_is_dominated_and_every_other_is(pairs):
    rows = pd.DataFrame(pairs, columns=["x", "y"], dtype=float, index=[f"run {i}" for i in range(len(pairs))])
    stands = experiments.pareto(rows, "x", "y")

    def dominates(a, b) -> bool:
        return a.x <= b.x and a.y <= b.y and (a.x < b.x or a.y < b.y)

    points = list(rows.itertuples())
    for point, holds in zip(points, stands, strict=True):
        if math.isnan(point.x) or math.isnan(point.y):
            assert not holds
        elif holds:
            assert not any(dominates(other, point) for other in points)
        else:
            assert any(dominates(other, point) for other, kept in zip(points, stands, strict=True) if kept)
    assert list(stands.index) == list(rows.index)


def test_equal_runs_stand_or_fall_together():
    rows = pd.DataFrame({"x": [1, 1, 2, 2, 1], "y": [2, 2, 1, 2, 3]})
    assert list(experiments.pareto(rows, "x", "y")) == [True, True, True, False, False]


def test_the_lowest_of_each_column_would_not_be_the_front():
    """Negative control: a run that is best in nothing can stand."""
    rows = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": [3.0, 2.0, 1.0]})
    best = (rows.x == rows.x.min()) | (rows.y == rows.y.min())
    assert list(experiments.pareto(rows, "x", "y")) == [True, True, True] != list(best)


# --- the notebook ---


@pytest.mark.slow
@pytest.mark.parametrize("which", ["several", "not evaluated"])
def test_the_notebook_runs_headless(folder, tmp_path, root, which):
    given = {"folder": str(folder)} | ({"runs": "second third", "where": "state=interrupted"} if which == "not evaluated" else {})
    (folder / "broken").mkdir()
    (folder / "broken" / "config.yaml").write_text(f"name: {EVIL[0]}")
    done = nbformat.read(report.execute(root / "notebooks/10_runs.ipynb", tmp_path / "out.ipynb", given, progress=False), as_version=4)
    shown = json.dumps([cell.get("outputs", []) for cell in done.cells])
    assert (row(folder, "first")["id"] in shown, "No run was evaluated." in shown) == (which == "several", which != "several")


# --- the command ---


def shell(*arguments: object, given: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], input=given)
    said = result.output + (str(result.exception) if result.exception and not isinstance(result.exception, SystemExit) else "")
    return result.exit_code, said


def test_the_list_fits_eighty_columns(folder, monkeypatch):
    evaluated(trained(folder, "a-rather-long-name-of-a-run-that-somebody-gave-it", training={"epochs": 2}))
    monkeypatch.setattr(cli_corpus.out, "_width", 80)
    code, said = shell("runs")
    lines = [line for line in said.splitlines() if "not to be compared" not in line]
    assert code == 0 and max(map(len, lines)) <= 80
    first = row(folder, "first")
    assert first["id"] in said and "10.00" in said and f"–{100 * first['high']:.2f}" in said and "40 s" in said and "interrupted" in said
    code, said = shell("runs", "first", "second", "--diff")
    assert code == 0 and max(map(len, said.splitlines())) <= 80 and "model.family" in said and "optim.lr" not in said


def test_json_holds_what_the_table_holds(folder):
    code, said = shell("runs", "--where", "seed=1", "--json")
    third, first = json.loads(said)
    assert code == 0 and (first["name"], first["wer"], first["clips"], first["config"]["seed"]) == ("first", 0.1, 80, 1)
    assert third["wer"] is None and third["started"] is None and first["started"].endswith("+00:00")
    code, said = shell("runs", "first", "second", "--diff", "--json")
    assert sorted(json.loads(said)["seed"].values()) == ["1", "2"]


def test_runs_of_other_test_clips_are_named(folder):
    evaluated(trained(folder, "other"), heard_sha256="2" * 64)
    _, said = shell("runs")
    assert f"not to be compared: {row(folder, 'first')['id']}" in said


def test_no_run_yet_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shell("runs") == (0, "no run\n")
    assert json.loads(shell("runs", "--json")[1]) == []
    code, said = shell("runs", "nobody", "--json")
    assert code and "No run is called so" in said


def test_hostile_names_are_shown_and_not_obeyed(folder):
    names = [EVIL[1], "[red]x", "\x1b[31mred\x1b[0m", "a\u202eb"]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text("name: [link=http://x]y[/link]")
    rows = experiments.table(folder)
    assert set(names) <= set(rows.id)
    page = "".join(
        [
            markup.table_html(experiments.readable(rows), experiments.FORMATS),
            markup.table_html(experiments.usage(rows), experiments.FORMATS),
            markup.definitions_html(dict(zip(rows.id, rows.note, strict=True))),
        ]
    )
    assert live_markup(page) == [] and "[U+202E]" in page
    code, said = shell("runs")
    assert code == 0 and "[red]x" in said and "[U+001B][31mred" in said and "\x1b[31m" not in said and "\u202e" not in said
