"""The copy of a run: what is pushed comes back whole, half of it counts for nothing, and no store stops a training.

The stores are a folder by ``file://`` and fsspec's memory; S3 and Google Cloud go through the same few calls and are not tested.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from test_cluster import SMOKE, command, digest

from speechlab import checkpoints, cluster, config, runs, storage
from speechlab.errors import InputError


class Weights(torch.nn.Linear):
    """Savable as a checkpoint."""

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")


def checkpoint(run: runs.Run, step: int) -> checkpoints.Checkpoint:
    torch.manual_seed(step)
    model = Weights(4, 4)
    state = {"step": step, "epoch": 0, "wer": 1 / step, "history": {}}
    return checkpoints.save(run.path / "checkpoints", model, torch.optim.AdamW(model.parameters()), state)


@pytest.fixture
def run(tmp_path) -> runs.Run:
    made = runs.Run.create(config.load("configs/smoke.yaml", ["tracking.enabled=false"]), tmp_path / "here")
    made.append({"kind": "message", "level": "info", "text": "é"})
    (made.path / "samples" / "a b%41.txt").write_text("x")
    (made.path / "ray" / "deep").mkdir(parents=True)
    (made.path / "ray" / "deep" / "log").write_text("of no use elsewhere")
    checkpoint(made, 1)
    checkpoint(made, 2)
    return made


@pytest.fixture(params=["file", "memory"])
def uri(request, tmp_path) -> str:
    if request.param == "file":
        return (tmp_path / "there").as_uri()
    fsspec.filesystem("memory").store.clear()
    return "fsspec+memory://bucket/runs"


def tree(folder: Path) -> dict[str, bytes]:
    skipped = ("ray/", "driver.", "stop")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(skipped)}


def test_what_is_pushed_comes_back(run, uri, tmp_path):
    storage.push(run.path, uri)
    back = storage.pull(f"{uri}/{run.id}", tmp_path / "elsewhere")
    assert back.path == tmp_path / "elsewhere" / run.id
    assert tree(back.path) == tree(run.path)
    assert not (back.path / "ray").exists()
    assert checkpoints.newest(back.path / "checkpoints")[0].step == 2
    assert back.events() == run.events()


def test_a_second_push_copies_what_is_new_and_forgets_what_was_pruned(run, uri, tmp_path, monkeypatch):
    storage.push(run.path, uri)
    written: list[str] = []
    write = storage._There.write
    monkeypatch.setattr(storage._There, "write", lambda self, name, source: (written.append(name), write(self, name, source)))
    storage.push(run.path, uri)
    assert written == [], "nothing is copied twice"
    shutil.rmtree(run.path / "checkpoints" / "step-000001")
    checkpoint(run, 3)
    run.change(["cluster.max_failures=7"])
    storage.push(run.path, uri)
    assert {name for name in written if "/" not in name} == {"overrides.txt"}
    assert {name.split("/")[1] for name in written if "/" in name} == {"step-000003"}
    assert written.index("checkpoints/step-000003/files.json") > written.index("checkpoints/step-000003/model.safetensors")
    back = storage.pull(f"{uri}/{run.id}", tmp_path / "elsewhere")
    assert tree(back.path) == tree(run.path)
    assert back.config.cluster.max_failures == 7


def test_a_checkpoint_made_again_replaces_its_copy(run, uri, tmp_path):
    storage.push(run.path, uri)
    shutil.rmtree(run.path / "checkpoints" / "step-000002")
    torch.manual_seed(99)
    model = Weights(4, 4)
    state = {"step": 2, "epoch": 0, "wer": None, "history": {}}
    again = checkpoints.save(run.path / "checkpoints", model, torch.optim.AdamW(model.parameters()), state)
    storage.push(run.path, uri)
    found, passed_over = checkpoints.newest(storage.pull(f"{uri}/{run.id}", tmp_path / "elsewhere").path / "checkpoints")
    assert (found.digest, passed_over) == (again.digest, [])


@pytest.mark.parametrize("broken", ["optimizer.safetensors", "state.json", "files.json"])
def test_half_a_copy_is_never_taken(run, uri, tmp_path, monkeypatch, broken):
    write = storage._There.write

    def break_off(self, name, source):
        if name.endswith(f"step-000002/{broken}"):
            raise OSError("the line is cut")
        write(self, name, source)

    monkeypatch.setattr(storage._There, "write", break_off)
    with pytest.raises(OSError, match="the line is cut"):
        storage.push(run.path, uri)
    monkeypatch.undo()
    shutil.copy(run.path / "config.yaml", tmp_path / "config.yaml")
    storage._There(f"{uri}/{run.id}").write("config.yaml", tmp_path / "config.yaml")
    back = storage.pull(f"{uri}/{run.id}", tmp_path / "elsewhere")
    assert checkpoints.newest(back.path / "checkpoints")[0].step == 1
    storage.push(run.path, uri)
    whole = storage.pull(f"{uri}/{run.id}", tmp_path / "whole")
    assert checkpoints.newest(whole.path / "checkpoints")[0].step == 2


def test_a_byte_that_changed_on_the_way_is_noticed(run, uri, tmp_path):
    storage.push(run.path, uri)
    damaged = tmp_path / "damaged"
    data = bytearray((run.path / "checkpoints/step-000002/model.safetensors").read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    storage._There(f"{uri}/{run.id}").write("checkpoints/step-000002/model.safetensors", damaged)
    found, passed_over = checkpoints.newest(storage.pull(f"{uri}/{run.id}", tmp_path / "elsewhere").path / "checkpoints")
    assert found.step == 1
    assert "SHA-256 differs" in passed_over[0]


def test_a_run_that_is_here_is_not_fetched_over(run, uri):
    storage.push(run.path, uri)
    run.append({"kind": "message", "level": "info", "text": "newer"})
    assert storage.pull(f"{uri}/{run.id}", run.path.parent).events()[-1]["text"] == "newer"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("file:///nowhere/at/all/run", "no run at this URI"), ("ftp2://x/run", "no URI of a store"), ("s3://", "store cannot be reached")],
)
def test_no_run_there(tmp_path, wrong, said):
    with pytest.raises(InputError, match=said):
        storage.pull(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_uri_is_a_copy_s_place_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    path = Path(__file__).parents[1] / "configs/smoke.yaml"
    assert runs.Run.create(config.load(path, ["cluster.storage=s3://bucket/runs"])).path.parent == tmp_path / "reports"
    assert runs.Run.create(config.load(path, [f"cluster.storage={tmp_path}/shared"])).path.parent == tmp_path / "shared"
    assert not runs.is_uri("/a/b") and not runs.is_uri("C:/a") and not runs.is_uri(None) and runs.is_uri("fsspec+memory://x")


def test_a_store_that_is_gone_is_one_warning(run, tmp_path, monkeypatch):
    (tmp_path / "wall").write_text("no folder")
    run.change([f"cluster.storage=file://{tmp_path}/wall/runs"])
    monkeypatch.setattr(storage, "LOOK", 0.05)
    with storage.mirrored(run):
        for step in (1, 2):
            run.append({"kind": "checkpoint", "step": step})
            time.sleep(0.3)
    said = [e["text"] for e in run.events() if e.get("level") == "warning"]
    assert len(said) == 1
    assert "wall" in said[0] and "training goes on" in said[0]


def test_a_store_that_hangs_does_not_hold_the_end(run, tmp_path, monkeypatch):
    run.change([f"cluster.storage=file://{tmp_path}/there"])
    monkeypatch.setattr(storage, "PATIENCE", 0.2)
    hold = threading.Event()
    monkeypatch.setattr(storage, "push", lambda *_: hold.wait())
    with storage.mirrored(run):
        pass
    hold.set()
    assert "is behind" in run.events()[-1]["text"]


def test_without_a_uri_nothing_follows(run):
    with storage.mirrored(run):
        assert [t for t in threading.enumerate() if t.name == "storage"] == []


@pytest.mark.slow
def test_a_run_goes_on_from_its_copy(tmp_path, prompts):
    overrides = [*SMOKE, "cluster.workers=0", f"cluster.storage={(tmp_path / 'there').as_uri()}", "training.keep_last=100"]
    whole = runs.Run.create(config.load("configs/smoke.yaml", overrides), tmp_path / "one")
    assert cluster.drive(whole) == "finished"
    copied = storage.pull(f"{whole.config.cluster.storage}/{whole.id}", tmp_path / "two")
    assert json.loads((copied.path / "provenance.json").read_text()) == whole.provenance
    assert digest(copied) == digest(whole)
    assert copied.state == "finished"

    # as if the machine had been lost in the middle
    kept = checkpoints.existing(copied.path / "checkpoints")[:30]
    for c in checkpoints.existing(copied.path / "checkpoints")[30:]:
        shutil.rmtree(c.path)
    shutil.rmtree(tmp_path / "there" / whole.id)
    storage.push(copied.path, (tmp_path / "there").as_uri())
    driver = command("train", "--resume", f"{(tmp_path / 'there').as_uri()}/{whole.id}")
    said, complained = driver.communicate(timeout=240)
    fetched = runs.find(whole.id)
    try:
        assert driver.returncode == 0, complained
        assert str(fetched.path) in said
        assert [e["resumed_from"] for e in fetched.events() if e["kind"] == "start"] == [None, kept[-1].step]
        assert digest(fetched) == digest(whole)
    finally:
        shutil.rmtree(fetched.path)
