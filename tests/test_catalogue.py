"""The catalogue: what it tells of runs, and that it reads no more than has changed."""

from __future__ import annotations

import math
import os
import shutil
import time

import pytest
from browser import make_run, step_event, validation_event
from evaluated import AFTER
from sidelong import evaluated, trained

from speechlab import catalogue as module
from speechlab import evaluation, experiments, history
from speechlab.catalogue import POINTS, Catalogue
from speechlab.errors import InputError


def known(catalogue: Catalogue) -> dict[str, module.Entry]:
    return {entry.id: entry for entry in catalogue.look(fresh=True)}


def test_it_tells_what_the_table_of_runs_tells(tmp_path):
    evaluated(trained(tmp_path, "first", (0.5, 0.25)))
    evaluated(trained(tmp_path, "second", (0.4, 0.3)))
    make_run(tmp_path, steps=30, name="third")
    found = known(Catalogue(tmp_path))
    rows = experiments.table(tmp_path).set_index("id")
    assert set(found) == set(rows.index)
    for id, entry in found.items():
        row = rows.loc[id]
        assert (entry.state, entry.model, entry.clips) == (row.state, f"{row.family}, {row.weights}", row.clips)
        for name in ("dev", "wer", "low", "high", "seconds"):
            assert getattr(entry, name) == pytest.approx(row[name], nan_ok=True), name
        assert entry.started == pytest.approx(row.started.timestamp())


def test_a_second_look_reads_nothing_and_a_change_only_what_changed(tmp_path):
    runs = [make_run(tmp_path, steps=9, name=f"run-{i}", end=i != 0) for i in range(3)]
    catalogue = Catalogue(tmp_path)
    first = known(catalogue)
    before = catalogue.read
    assert before > 0
    assert known(catalogue) == first
    assert catalogue.read == before
    runs[0].append(step_event(10))
    second = known(catalogue)
    assert catalogue.read == before + 1
    assert (second["run-0"].step, second["run-0"].clips) == (10, first["run-0"].clips + 30)
    assert [second[f"run-{i}"] is first[f"run-{i}"] for i in (1, 2)] == [True, True]
    evaluation.save(runs[2].path / "evaluations", AFTER)
    assert known(catalogue)["run-2"].wer == pytest.approx(0.1)
    assert catalogue.read == before + 2


def test_those_who_look_at_once_share_a_look(tmp_path, monkeypatch):
    make_run(tmp_path, steps=3, epochs=1, name="a")
    catalogue = Catalogue(tmp_path)
    looks = []
    monkeypatch.setattr(Catalogue, "names", lambda self: looks.append(1) or ["a"])
    for _ in range(10):
        catalogue.look()
    assert len(looks) == 1
    catalogue.look(fresh=True)
    assert len(looks) == 2


def test_a_run_that_grows_is_followed_to_its_end_and_forgotten(tmp_path):
    run = make_run(tmp_path, steps=6, epochs=1, name="a", end=False)
    catalogue = Catalogue(tmp_path)
    assert known(catalogue)["a"].live
    for step in range(7, 200):
        run.append(step_event(step, 200))
    entry = known(catalogue)["a"]
    assert (entry.step, entry.state) == (199, "running")
    assert 10 < len(entry.losses) <= POINTS
    assert entry.losses[-1][0] == 199
    run.append(validation_event(199, 200))
    run.append({"kind": "end", "step": 199, "seconds": 1.0, "best": {"step": 199, "wer": 0.001}})
    entry = known(catalogue)["a"]
    assert (entry.state, entry.dev) == ("finished", 0.001)
    assert catalogue._runs["a"]._feed is None, "what has ended stays no more than a row"
    run.append({"kind": "start", "steps": 300, "epochs": 3, "resumed_from": 100, "time": time.time()})
    run.append(step_event(101, 300))
    entry = known(catalogue)["a"]
    assert (entry.state, entry.step, entry.steps) == ("running", 101, 300)
    assert entry.clips == 200 * 30, "steps that a resume repeats are paid for twice"


def test_live_ones_come_first_and_then_the_newest(tmp_path):
    for name, when, end in (("old", 100.0, True), ("new", 300.0, True), ("live", 50.0, False)):
        run = make_run(tmp_path, steps=2, epochs=1, name=name, end=end)
        text = (run.path / "events.jsonl").read_text().replace(f'"time": {__import__("browser").EPOCH}', f'"time": {when}', 1)
        (run.path / "events.jsonl").write_text(text)
    assert [e.id for e in Catalogue(tmp_path).look()] == ["live", "new", "old"]


def test_a_driver_shows_by_its_lock_and_is_missed_after_a_while(tmp_path, monkeypatch):
    run = make_run(tmp_path, steps=3, epochs=1, name="a", end=False)
    catalogue = Catalogue(tmp_path)
    monkeypatch.setattr("speechlab.history.SILENCE", -1e9)  # as if the last event were long ago
    assert known(catalogue)["a"].state == "interrupted"
    with run.lock():
        assert known(catalogue)["a"].state == "running"
    assert known(catalogue)["a"].state == "interrupted"


def test_a_broken_run_says_why_hides_no_other_and_can_be_mended(tmp_path):
    make_run(tmp_path, steps=3, epochs=1, name="whole")
    run = make_run(tmp_path, steps=3, epochs=1, name="broken")
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text("name: [")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "events.jsonl").write_text("")
    (tmp_path / "notebooks").mkdir()  # no run
    catalogue = Catalogue(tmp_path)
    found = known(catalogue)
    assert {id: e.state for id, e in found.items()} == {"whole": "finished", "broken": "broken", "bare": "broken"}
    assert "YAML" in found["broken"].note
    assert "no config.yaml" in found["bare"].note
    assert found["whole"].note == ""
    (run.path / "config.yaml").write_text(text)
    assert known(catalogue)["broken"].state == "finished"
    assert known(catalogue)["broken"].clips == 90


@pytest.mark.parametrize("damage", [b"\x00\xff\n", b'{"kind": "step"', b'{"kind": "step", "step": "x", "clips": []}\n', b"[]\n{}\n"])
def test_half_written_and_unreadable_lines_cost_no_more_than_themselves(tmp_path, damage):
    run = make_run(tmp_path, steps=3, epochs=1, name="a", end=False)
    with open(run.path / "events.jsonl", "ab") as f:
        f.write(damage)
    catalogue = Catalogue(tmp_path)
    assert known(catalogue)["a"].step >= 3 or math.isnan(known(catalogue)["a"].step)
    run.append(step_event(4))
    assert known(catalogue)["a"].step == 4


def test_an_evaluation_that_cannot_be_read_breaks_its_run_alone(tmp_path):
    evaluated(trained(tmp_path, "a"))
    evaluated(trained(tmp_path, "b"))
    (a,) = tmp_path.glob("a-*")
    next(a.glob("evaluations/finetuned--clean--silence.parquet")).write_bytes(b"PAR1")
    states = {e.model and e.id[0]: e.state for e in Catalogue(tmp_path).look()}
    assert states == {"a": "broken", "b": "finished"}


def test_a_deleted_run_vanishes_and_a_made_one_appears(tmp_path):
    run = make_run(tmp_path, steps=3, epochs=1, name="a")
    catalogue = Catalogue(tmp_path)
    assert set(known(catalogue)) == {"a"}
    make_run(tmp_path, steps=3, epochs=1, name="b")
    assert set(known(catalogue)) == {"a", "b"}
    shutil.rmtree(run.path)
    assert set(known(catalogue)) == {"b"}
    assert set(catalogue._runs) == {"b"}
    shutil.rmtree(tmp_path)
    assert known(catalogue) == {}


def test_a_file_that_is_replaced_is_read_anew(tmp_path):
    run = make_run(tmp_path, steps=9, epochs=1, name="a", end=False)
    catalogue = Catalogue(tmp_path)
    assert known(catalogue)["a"].clips == 270
    other = make_run(tmp_path, steps=30, epochs=1, name="other", end=False)
    os.replace(other.path / "events.jsonl", run.path / "events.jsonl")  # longer, and another file
    assert known(catalogue)["a"].clips == 900


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../outside", "a/../../outside", "/etc", "a/", "a\x00", "nobody", "a/checkpoints", "latest", "%2e%2e", ".hidden"],
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    root = tmp_path / "reports"
    root.mkdir()
    make_run(root, steps=2, epochs=1, name="a")
    make_run(root, steps=2, epochs=1, name=".hidden")
    make_run(tmp_path, steps=2, epochs=1, name="outside")
    catalogue = Catalogue(root)
    assert catalogue.run("a").path == root / "a"  # control
    with pytest.raises(InputError, match="no such run"):
        catalogue.run(name)


def test_a_link_that_leads_out_is_not_followed(tmp_path):
    root = tmp_path / "reports"
    root.mkdir()
    make_run(tmp_path, steps=2, epochs=1, name="outside", question="secret")
    make_run(root, steps=2, epochs=1, name="a", question="open")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root / "a")
    catalogue = Catalogue(root)
    found = known(catalogue)
    assert (found["out"].state, found["out"].question) == ("broken", "")
    assert "leads out" in found["out"].note
    assert (found["in"].state, found["in"].question) == ("finished", "open")  # control
    assert catalogue.run("in").path == root / "a"
    with pytest.raises(InputError, match="leads out"):
        catalogue.run("out")


def test_words_filter_by_all_that_is_told(tmp_path):
    make_run(tmp_path, steps=2, epochs=1, name="quick", question="Does it draw?")
    (entry,) = Catalogue(tmp_path).look()
    assert all(entry.holds(words) for words in ("", "QUICK", "tiny draw", "finished", "whisper"))
    assert not entry.holds("quick slow")


@pytest.mark.parametrize("end", [True, False])
def test_a_long_run_is_read_piece_by_piece_also_when_it_has_ended(tmp_path, monkeypatch, end):
    make_run(tmp_path, steps=300, epochs=3, name="long", end=end)
    (whole,) = Catalogue(tmp_path).look()
    monkeypatch.setattr(history, "AT_ONCE", 20_000)
    catalogue = Catalogue(tmp_path)
    steps = [catalogue.look(fresh=True)[0].step for _ in range(12)]
    assert steps[0] < 100 < steps[2] < steps[-1] == 300
    assert catalogue.look(fresh=True)[0] == whole
    assert module.entry(tmp_path / "long") == whole, "asked for alone, it is read to its end"
