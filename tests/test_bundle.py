"""A run in one file: the same bytes each time, whole at the other end, and nothing that was changed, added or lost on the way unnoticed."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from released import RECORD, better, finished
from typer.testing import CliRunner

from speechlab import bundle, checkpoints, cli, config, evaluation, models, provenance, runs, systems
from speechlab.errors import InputError
from speechlab.runs import Run

LOCK = (Path(__file__).parents[1] / "requirements.lock").read_bytes()
KEPT = {"code.patch": b"diff --git a/x b/x\n", "packages.txt": b"torch==2.11.0\n", "manifest.jsonl.gz": gzip.compress(b'{"id": "a"}\n')}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_whisper) -> Run:
    """As training and evaluation leave it."""
    record = {
        **RECORD,
        "code": {**RECORD["code"], "patch": "code.patch", "patch_sha256": sha(KEPT["code.patch"])},
        "data": {**RECORD["data"], "manifest_sha256": sha(b'{"id": "a"}\n')},
        "dependencies": {"lock_sha256": sha(LOCK), "packages_sha256": sha(KEPT["packages.txt"])},
    }
    made = finished(tmp_path_factory.mktemp("here"), small_whisper, record=record)
    for name, data in KEPT.items():
        (made.path / name).write_bytes(data)
    (made.path / "report.html").write_text("<p>report</p>")
    for name in ("secret.txt", "evaluations/.a--clean--full.json.7.tmp", "evaluations/hardest--clean--full.d/clip.flac"):
        (made.path / name).parent.mkdir(exist_ok=True)
        (made.path / name).write_text("not for others")
    return made


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sent") / "run.zip"
    bundle.pack(run, file)
    return file


def rewritten(packed: Path, file: Path, **changed: bytes | None) -> Path:
    """A bundle with other bytes in members, or without them, its index left as it was."""
    with zipfile.ZipFile(packed) as z, zipfile.ZipFile(file, "w") as new:
        prefix = z.namelist()[0].partition("/")[0]
        members = {name.removeprefix(f"{prefix}/"): z.read(name) for name in z.namelist()}
        index = members.pop(bundle.INDEX)
        for name, data in {**members, **changed, bundle.INDEX: changed.get(bundle.INDEX, index)}.items():
            if data is not None:
                new.writestr(f"{prefix}/{name}", data)
    return file


# --- there and back ---


def test_a_run_is_whole_at_the_other_end(run, packed, tmp_path, monkeypatch):
    made = bundle.check(packed)
    assert made.run == run.id and made.sha256 == sha(packed.read_bytes())
    assert {"config.yaml", "events.jsonl", "provenance.json", "record.json", "requirements.lock", "report.html", *KEPT} < set(made.files)
    assert not [name for name in made.files if any(part in name for part in ("secret", "driver", "optimizer", "tmp", "hardest"))]
    before = sorted(packed.parent.iterdir())
    there = bundle.unpack(packed, tmp_path / "reports")
    assert sorted(packed.parent.iterdir()) == before and [p.name for p in there.path.parent.iterdir()] == [run.id]
    assert (there.id, there.state, there.config, there.events()) == (run.id, "finished", run.config, run.events())
    assert json.loads((there.path / "record.json").read_text()) == provenance.record(there) == provenance.record(run)
    assert provenance.clips(there) == ['{"id": "a"}'] and (there.path / "requirements.lock").read_bytes() == LOCK
    ours, theirs = (evaluation.load(one.path / "evaluations") for one in (run, there))
    assert [e.name for e in ours] == [e.name for e in theirs] and all(a.rows.equals(b.rows) for a, b in zip(ours, theirs, strict=True))
    for name, digest in made.files.items():
        assert sha((there.path / name).read_bytes()) == digest, name
    monkeypatch.chdir(tmp_path)
    system = systems.resolve(str(there.path), "en")
    model = models.load("whisper", Path(system.folder), "en", there.config.model)
    best = checkpoints.best(checkpoints.existing(run.path / "checkpoints"))
    assert system.sha256 == checkpoints.weights_digest(model) == best.digest


def test_the_same_run_gives_the_same_bytes(run, packed, tmp_path):
    there = bundle.unpack(packed, tmp_path)
    (there.path / "report.html").touch()
    assert bundle.pack(there, tmp_path / "again.zip").sha256 == bundle.check(packed).sha256
    assert not list(tmp_path.glob(".*"))


def test_no_bundle_joins_this_machine_s_queue(packed, tmp_path):
    """Or unpacking a stranger's run could start it."""
    job = b'{"by": "stranger", "at": 1, "number": 1, "cpus": 1, "host": "here"}'
    with zipfile.ZipFile(packed) as z:
        index = json.loads(z.read(z.namelist()[-1]))
    index["files"] |= {"job.json": sha(job)}
    forged = rewritten(packed, tmp_path / "forged.zip", **{"job.json": job, bundle.INDEX: json.dumps(index).encode()})
    assert "job.json" in bundle.check(forged).files, "control: the file itself is sound"
    assert not (bundle.unpack(forged, tmp_path / "reports").path / "job.json").exists()


def test_the_command_packs_verifies_and_unpacks(run, packed, tmp_path, monkeypatch):
    file = tmp_path / "sent.zip"
    done = CliRunner().invoke(cli.app, ["bundle", str(run.path), "--out", str(file)])
    assert done.exit_code == 0 and done.output.splitlines()[-1] == str(file)
    assert file.read_bytes() == packed.read_bytes() and sha(file.read_bytes()) in done.output
    monkeypatch.setattr(config, "reports", lambda: tmp_path / "reports")
    checked = CliRunner().invoke(cli.app, ["unbundle", str(file), "--check"])
    assert checked.exit_code == 0 and f"run {run.id}: " in checked.output and not (tmp_path / "reports").exists()
    there = CliRunner().invoke(cli.app, ["unbundle", str(file)])
    assert there.exit_code == 0 and runs.find(run.id, tmp_path / "reports").state == "finished"
    again = CliRunner().invoke(cli.app, ["unbundle", str(file)])
    assert isinstance(again.exception, InputError) and "is here already" in str(again.exception)


# --- what is not packed ---


def test_a_run_that_is_not_whole_is_not_packed(run, tmp_path, small_whisper):
    file = tmp_path / "out.zip"
    with pytest.raises(InputError, match="is not finished") as e:
        bundle.pack(Run.create(run.config, tmp_path), file)
    assert "train --resume" in str(e.value)
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "packages.txt").write_text("torch==2.10.0\n")
    with pytest.raises(InputError, match="not those of its record") as e:
        bundle.pack(copy, file)
    assert "packages.txt" in str(e.value)
    lost = json.dumps({**copy.provenance, "dependencies": {"lock_sha256": "0" * 64}})
    (copy.path / "provenance.json").write_text(lost.replace('"git_sha": "c0ffee"', '"git_sha": null'))
    with pytest.raises(InputError, match="lock that the run was made with cannot be had"):
        bundle.pack(copy, file)
    (copy.path / "checkpoints" / "step-000001" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="best checkpoint of run copy is damaged") as e:
        bundle.pack(copy, file)
    assert "model.safetensors" in str(e.value)
    with pytest.raises(InputError, match="cannot be written"):
        bundle.pack(run, run.path / "config.yaml" / "out.zip")
    assert not file.exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "tracking: {uri: 'postgresql://me:hunter2@host/db'}\n"),
        ("overrides.txt", "tracking.uri=https://me:hunter2@host\n"),
        ("events.jsonl", '{"kind": "message", "text": "no copy at s3://a:hunter2@b"}\n'),
    ],
)
def test_no_password_goes_along(run, tmp_path, name, text):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    with open(copy.path / name, "a") as f:
        f.write(text)
    with pytest.raises(InputError, match="holds a password") as e:
        bundle.pack(copy, tmp_path / "out.zip")
    assert name in str(e.value) and "hunter2" not in str(e.value)
    assert not (tmp_path / "out.zip").exists()


def test_of_several_checkpoints_the_best_goes(run, tmp_path, small_whisper):
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    better(copy, small_whisper, 2)
    assert {name.split("/")[1] for name in bundle.pack(copy, tmp_path / "out.zip").files if name.startswith("checkpoints/")} == {
        "step-000002"
    }


def test_the_lock_is_that_of_the_commit(run, monkeypatch, tmp_path):
    """Of a run made before the lock changed."""
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    (copy.path / "provenance.json").write_text(
        json.dumps({**copy.provenance, "dependencies": {**copy.provenance["dependencies"], "lock_sha256": sha(b"old")}})
    )
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "requirements.lock").write_bytes(b"old")
    asked = []

    class Tree:
        def __init__(self, *wanted: object) -> None:
            asked.append(wanted[1:])

        def __enter__(self) -> Path:
            return tmp_path / "tree"

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(bundle.commit, "checkout", Tree)
    bundle.pack(copy, tmp_path / "out.zip")
    assert (bundle.unpack(tmp_path / "out.zip", tmp_path / "there").path / "requirements.lock").read_bytes() == b"old"
    assert asked == [("c0ffee", KEPT["code.patch"])]


# --- what is refused at the other end ---


def test_a_flipped_byte_is_named(packed, tmp_path):
    with zipfile.ZipFile(packed) as z:
        places = {i.filename.partition("/")[2]: i.header_offset + 30 + len(i.filename) + i.file_size // 2 for i in z.infolist()}
    assert len(places) > 15
    for name, place in places.items():
        data = bytearray(packed.read_bytes())
        data[place] ^= 1
        (tmp_path / "bad.zip").write_bytes(data)
        with pytest.raises(InputError) as e:
            bundle.check(tmp_path / "bad.zip")
        assert name in str(e.value)
        with pytest.raises(InputError):
            bundle.unpack(tmp_path / "bad.zip", tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_a_changed_lost_or_added_member_is_named(packed, tmp_path):
    with pytest.raises(InputError, match="is not what was packed") as e:
        bundle.check(rewritten(packed, tmp_path / "bad.zip", **{"events.jsonl": b"", "record.json": None, "report2.html": b"x"}))
    for said in ("events.jsonl: not what was packed", "record.json: missing", "report2.html: not in the index"):
        assert said in str(e.value)
    bundle.check(rewritten(packed, tmp_path / "good.zip"))


def test_an_index_that_agrees_with_forged_files_does_not_help(packed, tmp_path):
    files = bundle.check(packed).files
    for name, data, said in (
        ("code.patch", b"another", "code.patch: not the one of the record"),
        ("manifest.jsonl.gz", gzip.compress(b'{"id": "b"}\n'), "manifest.jsonl.gz: not the one of the record"),
        ("manifest.jsonl.gz", b"no gzip", "manifest.jsonl.gz: "),
        ("provenance.json", b"[]", "provenance.json: not a record"),
        ("requirements.lock", None, "requirements.lock: missing"),
    ):
        sums = {**files, name: sha(data)} if data is not None else {k: v for k, v in files.items() if k != name}
        index = json.dumps({"format": 1, "run": bundle.check(packed).run, "files": sums}).encode()
        with pytest.raises(InputError, match="not those of its record") as e:
            bundle.check(rewritten(packed, tmp_path / "bad.zip", **{name: data, bundle.INDEX: index}))
        assert said in str(e.value)


@pytest.mark.parametrize(
    "name", ["../out.txt", "x/../../out.txt", "/etc/out.txt", "a\\..\\out.txt", "C:out.txt", ".hidden", "x//y", "folder/"]
)
def test_no_member_leads_elsewhere(packed, tmp_path, name):
    with pytest.raises(InputError, match="is no bundle of a run"):
        bundle.unpack(rewritten(packed, tmp_path / "bad.zip", **{name: b"x"}), tmp_path / "reports")
    with zipfile.ZipFile(packed) as z, zipfile.ZipFile(tmp_path / "bare.zip", "w") as new:
        new.writestr(name, b"x")  # beside the run's folder
        for info in z.infolist():
            new.writestr(info, z.read(info))
    with pytest.raises(InputError, match="is no bundle of a run"):
        bundle.unpack(tmp_path / "bare.zip", tmp_path / "reports")
    assert not (tmp_path / "reports").exists() and not list(tmp_path.parent.rglob("out.txt"))


def test_nothing_is_let_out_that_is_not_in_the_file(packed, tmp_path, monkeypatch):
    """Bombs: compressed members, members on top of each other, two of one name, a manifest that unpacks without end."""
    run = bundle.check(packed).run
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(f"{run}/zeros", bytes(10**8))
        z.writestr(f"{run}/{bundle.INDEX}", b"{}")
    assert (tmp_path / "bomb.zip").stat().st_size < 10**6
    with pytest.raises(InputError, match="compressed"):
        bundle.check(tmp_path / "bomb.zip")

    with zipfile.ZipFile(tmp_path / "over.zip", "w") as z:
        z.writestr(f"{run}/zeros", bytes(10**5))
        z.writestr(f"{run}/{bundle.INDEX}", b"{}")
        for n in range(9):  # the same bytes under nine more names
            info = zipfile.ZipInfo(f"{run}/zeros{n}")
            first = z.infolist()[0]
            info.header_offset, info.file_size, info.compress_size, info.CRC = 0, first.file_size, first.file_size, first.CRC
            z.filelist.insert(0, info)
    with pytest.raises(InputError, match="overlap"):
        bundle.check(tmp_path / "over.zip")

    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as z:
        for name in ("a", "a", bundle.INDEX):
            with warnings.catch_warnings(action="ignore"):
                z.writestr(f"{run}/{name}", b"{}")
    with pytest.raises(InputError, match="two members of one name"):
        bundle.check(tmp_path / "twice.zip")

    monkeypatch.setattr(bundle, "MANIFEST_LIMIT", 5)
    with pytest.raises(InputError, match=r"manifest\.jsonl\.gz"):
        bundle.check(packed)


@pytest.mark.parametrize(
    "index", [b"", b"[]", b"{}", b"[" * 10**5, b'{"format": 2}', b'{"format": 1, "run": "x", "files": {"config.yaml": 1}}']
)
def test_an_index_that_is_none(packed, tmp_path, index):
    with pytest.raises(InputError, match=r"is no bundle of a run"):
        bundle.check(rewritten(packed, tmp_path / "bad.zip", **{bundle.INDEX: index}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_to_the_bytes_it_is_said_or_nothing_changed(packed, tmp_path, data):
    whole = packed.read_bytes()
    head = len(whole) - 4000  # the index and the directory
    place = data.draw(st.integers(0, 200) | st.integers(head, len(whole) - 1))
    length = data.draw(st.integers(0, 4))
    (tmp_path / "bad.zip").write_bytes(whole[:place] + data.draw(st.binary(max_size=4)) + whole[place + length :])
    try:
        found = bundle.check(tmp_path / "bad.zip")
    except InputError:
        return
    assert found.files == bundle.check(packed).files


def test_what_is_no_zip(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"no zip")
    for name in ("x.zip", "nowhere.zip"):
        with pytest.raises(InputError, match="cannot be read") as e:
            bundle.check(tmp_path / name)
        assert name in str(e.value)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InputError, match="is no bundle"):
        bundle.check(tmp_path / "empty.zip")
