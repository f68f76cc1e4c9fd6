"""What is deleted and what is not: policy, locks, links, paths out of the folder, runs that others need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from sidelong import checkpoint, snapshot, trained
from test_experiments import shell
from test_runs import HOLD

from speechlab import upkeep
from speechlab.errors import InputError
from speechlab.runs import Run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "reports"


@pytest.fixture
def run(folder) -> Run:
    """Checkpoints at 10, 20, 30 and 40 steps, the second the best."""
    run = trained(folder, "mine")
    for step, wer in ((10, 0.5), (20, 0.2), (30, None), (40, 0.3)):
        checkpoint(run, step, wer)
    return run


@pytest.fixture
def other(folder) -> Run:
    """A run whose data must survive whatever happens to the first."""
    other = trained(folder, "other")
    checkpoint(other, 10, 0.5)
    return other


@pytest.fixture
def driver(run):
    """Another process that holds the run, as a driver does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def stays(run: Run, keep: int = 1) -> dict[str, str]:
    rows = upkeep.aged(run, keep)
    return dict(zip(rows.step, rows.stays, strict=True))


def kept(run: Run) -> list[str]:
    return sorted(p.name for p in (run.path / "checkpoints").iterdir())


# --- disk use ---


def test_disk_use_is_by_kind_and_links_are_not_followed(run, other):
    (run.path / "samples" / "a.mp3").write_bytes(b"x" * 1000)
    (run.path / "deep" / "samples").mkdir(parents=True)
    (run.path / "deep" / "samples" / "b").write_bytes(b"x" * 10)
    before = upkeep.disk(run.path)
    (run.path / "samples" / "link").symlink_to(other.path)
    after = upkeep.disk(run.path)
    assert before["samples"] == 1000 and before["checkpoints"] == sum(len(v) for v in snapshot(run.path / "checkpoints").values())
    assert sum(before.values()) == sum(len(v) for v in snapshot(run.path).values())
    assert before["rest"] > 10 and sum(after.values()) - sum(before.values()) == 0  # a link to a folder is no file of it
    assert [upkeep.size(n) for n in (0, 812, 36_000, 452_181_659, 999_700_000, 1_362_694_014, 2_000e9)] == [
        "0 B", "812 B", "36 kB", "452 MB", "1,000 MB", "1.36 GB", "2,000 GB"
    ]  # fmt: skip


# --- pruning ---


def test_the_best_and_the_newest_stay(run):
    assert stays(run) == {10: "", 20: "best", 30: "", 40: "newest"}
    assert stays(run, 2) == {10: "", 20: "best", 30: "newest", 40: "newest"}
    assert kept(run) == ["step-000010", "step-000020", "step-000030", "step-000040"]  # to look is not to touch
    size = sum(len(v) for v in snapshot(run.path / "checkpoints" / "step-000010").values())
    assert abs(upkeep.prune(run, root=run.path.parent) - 2 * size) < 10
    assert kept(run) == ["step-000020", "step-000040"]
    assert upkeep.prune(run, root=run.path.parent) == 0
    with pytest.raises(InputError, match="always stays"):
        upkeep.aged(run, 0)


def test_what_a_resume_would_fall_back_to_stays(run):
    (run.path / "checkpoints" / "step-000040" / "model.safetensors").write_bytes(b"flipped")
    assert stays(run) == {10: "", 20: "best", 30: "newest that is whole", 40: "newest"}


def test_what_the_mean_is_still_to_be_made_of_stays(folder):
    run = trained(folder, "averaged", training={"average": 3, "keep_last": 3})
    for step in (10, 20, 30, 40):
        checkpoint(run, step, 0.5 - step / 100)
    due = "the mean of the last is to be made"
    assert stays(run) == {10: "", 20: due, 30: due, 40: "newest"}
    checkpoint(run, 40, 0.1, name="average")
    assert stays(run) == {10: "", 20: "", 30: "", 40: "newest"}
    upkeep.prune(run, root=folder)
    assert kept(run) == ["average", "step-000040"]


@pytest.mark.parametrize("how", ["absolute", "from the project", "through a link", "unreadable"])
def test_what_another_run_starts_from_stays(run, folder, tmp_path, how):
    place = run.path / "checkpoints" / "step-000010"
    (tmp_path / "alias").symlink_to(place)
    weights = {"absolute": str(place), "from the project": os.path.relpath(place, tmp_path), "through a link": str(tmp_path / "alias")}
    user = trained(folder, "user", model={"weights": weights.get(how, str(place))})
    if how == "unreadable":
        (user.path / "config.yaml").write_text((user.path / "config.yaml").read_text() + "unknown: 1\n")
    assert stays(run)[10] == f"used by {user.id}"
    before = snapshot(run.path)
    with pytest.raises(InputError, match=rf"other runs refer to it[\s\S]*{user.id}"):
        upkeep.delete(run, folder)
    assert snapshot(run.path) == before | {"driver.lock": b""}
    shutil.rmtree(user.path)
    assert stays(run)[10] == "" and upkeep.delete(run, folder)


def test_a_trial_of_a_sweep_counts_as_another_run(run, folder):
    trained(folder / "sweep", "trial", model={"weights": str(run.path / "checkpoints" / "step-000010")})
    (name,) = upkeep.referring(run)
    assert name.startswith("sweep/trial-")


# --- deletion ---


def test_a_run_goes_and_no_other_is_touched(run, other, folder):
    (folder / "notes.db").write_bytes(b"db")
    before = {name: data for name, data in snapshot(folder).items() if not name.startswith(run.id)}
    size = sum(upkeep.disk(run.path).values())
    assert upkeep.delete(run, folder) == size
    assert snapshot(folder) == before and not run.path.exists()


@pytest.mark.parametrize("deed", [upkeep.delete, lambda run, root: upkeep.prune(run, 1, root)])
def test_a_running_run_is_protected(run, folder, driver, deed):
    before = snapshot(run.path)
    with pytest.raises(InputError, match="Another process is training"):
        deed(run, folder)
    assert snapshot(run.path) == before
    driver.stdin.close()
    driver.wait()
    deed(run, folder)
    assert not run.path.exists() or len(kept(run)) == 2


def test_links_in_a_run_go_and_what_they_lead_to_stays(run, other, folder):
    (run.path / "samples" / "link").symlink_to(other.path)
    (run.path / "link").symlink_to(other.path)
    (run.path / "file").symlink_to(other.path / "config.yaml")
    shutil.rmtree(run.path / "evaluations")
    (run.path / "evaluations").symlink_to(other.path / "evaluations")
    before = snapshot(other.path)
    upkeep.delete(run, folder)
    assert snapshot(other.path) == before and not run.path.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_checkpoints_behind_a_link_are_not_pruned(run, other, folder, whole):
    theirs = other.path / "checkpoints"
    if whole:
        shutil.rmtree(run.path / "checkpoints")
        checkpoint(other, 20, 0.1)
        (run.path / "checkpoints").symlink_to(theirs)
    else:
        (run.path / "checkpoints" / "step-000005").symlink_to(checkpoint(other, 5, 0.1))
    before = snapshot(other.path)
    assert "a link" in stays(run).values()
    upkeep.prune(run, root=folder)
    assert snapshot(other.path) == before
    assert (run.path / "checkpoints").is_symlink() if whole else (run.path / "checkpoints" / "step-000005").is_symlink()


def test_a_lock_that_is_a_link_is_refused_before_it_empties_a_file(run, other, folder):
    (run.path / "driver.lock").symlink_to(other.path / "config.yaml")
    before = snapshot(other.path)
    for deed in (upkeep.delete, lambda run, root: upkeep.prune(run, 1, root)):
        with pytest.raises(InputError, match="is a link"):
            deed(run, folder)
    assert snapshot(other.path) == before


def test_what_lies_outside_the_folder_is_refused(run, folder, tmp_path):
    outside = trained(tmp_path / "elsewhere", "outside")
    inner = trained(folder / "sweep", "trial")
    (folder / "alias").symlink_to(run.path)
    (folder / "out").symlink_to(outside.path)
    before = snapshot(tmp_path)
    for deed in (upkeep.delete, lambda run, root: upkeep.prune(run, 1, root)):
        for one in (outside, inner, Run(folder / "out")):
            with pytest.raises(InputError, match="Only what lies in the reports folder"):
                deed(one, folder)
    for name in ("alias", "reports/alias", "out", str(folder / "alias"), f"reports/alias/checkpoints/../../{'alias'}"):
        with pytest.raises(InputError, match="through a link"):
            upkeep.named(name, folder)
    for name in ("..", "../elsewhere", "reports", f"../{tmp_path.name}/elsewhere/{outside.id}", str(outside.path), "reports/..", "nobody"):
        with pytest.raises(InputError):
            upkeep.named(name, folder)
    assert snapshot(tmp_path) == before
    with pytest.raises(InputError, match="Only what lies in the reports folder"):
        upkeep.named("latest", folder)  # which is the linked one here
    (folder / "out").unlink()
    for name in (run.id, f"reports/{run.id}", str(run.path), "latest"):
        assert upkeep.named(name, folder).path == run.path


def test_a_reports_folder_that_is_a_link_is_no_obstacle(run, folder, tmp_path):
    (tmp_path / "big").symlink_to(folder)
    assert upkeep.named(run.id, tmp_path / "big").path == run.path
    assert upkeep.delete(run, tmp_path / "big") > 0


def test_an_interrupted_deletion_can_be_finished(run, folder, monkeypatch):
    def interrupted(path, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        upkeep.delete(run, folder)
    monkeypatch.undo()
    assert (run.path / "config.yaml").exists() and upkeep.delete(Run(run.path), folder)


# --- the commands ---


def test_the_commands_say_what_goes_and_ask(run, folder):
    before = snapshot(run.path)
    code, said = shell("prune", run.id, given="n\n")
    assert code == 1 and "goes" in said and "best" in said and "Delete 2 checkpoints" in said and snapshot(run.path) == before
    code, said = shell("delete", run.id, given="")
    assert code == 1 and "checkpoints" in said and snapshot(run.path) == before
    code, said = shell("prune", run.id, "--keep", 2, "--yes")
    assert code == 0 and said.endswith("freed\n") and len(kept(run)) == 3
    assert shell("prune", run.id, "--keep", 2) == (0, shell("prune", run.id, "--keep", 2, "--yes")[1])  # nothing to ask about
    assert shell("prune", run.id, "--keep", 0)[0] == 2
    code, said = shell("delete", run.id, given="y\n")
    assert code == 0 and "freed" in said and not run.path.exists()


def test_the_commands_refuse_what_runs_and_what_is_not_there(run, folder, driver):
    for command in ("prune", "delete"):
        code, said = shell(command, run.id, "--yes")
        assert code and "Another process is training" in said
        code, said = shell(command, "nobody", "--yes")
        assert code and run.id in said
        code, said = shell(command, "../elsewhere", "--yes")
        assert code and "not a run directory" in said
    assert len(kept(run)) == 4


def test_configs_beside_a_run_are_read_once_however_many_checkpoints_it_has(run, other, monkeypatch):
    read: list[str] = []
    load = upkeep.configs.load
    monkeypatch.setattr(upkeep.configs, "load", lambda path, *a: (read.append(path.parent.name), load(path, *a))[1])
    assert len(upkeep.aged(run)) == 4 and read.count(other.id) == 1
