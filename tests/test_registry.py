"""Registered models in a real SQLite store: what is a candidate, a champion, the one before; and the way back to the run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mlflow
import pytest
from released import RECORD, better, finished
from typer.testing import CliRunner

from speechlab import cli, cli_registry, config, registry, systems, tracking, upkeep, versions
from speechlab.errors import InputError
from speechlab.runs import Run


@pytest.fixture
def reports(store, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "reports", lambda: tmp_path)
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    shutil.copy(store, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def run(reports, small_whisper) -> Run:
    return finished(reports, small_whisper)


def where(name: str) -> dict[str, int]:
    """The version behind each alias."""
    return {alias: v.version for v in registry.versions(name) for alias in v.aliases}


def test_a_registered_run_is_a_candidate_that_leads_back_to_it(run):
    found = registry.register(run, "prompts-en")
    assert (found.version, found.aliases, found.run, found.signature) == (1, ("candidate",), run.id, run.config.signature)
    assert found.manifest_sha256 == RECORD["data"]["manifest_sha256"]
    best = systems.resolve(run.id, "en")
    assert found.digest == best.sha256
    assert found.rates == {"clean": "10.00 [0.00, 48.54]"}, "of these weights, not of those before"
    client = mlflow.MlflowClient(tracking_uri=tracking.uri_for(run))
    about = client.get_model_version("prompts-en", "1")
    assert client.get_run(about.run_id).data.tags["speechlab.run"] == run.id
    assert about.tags["speechlab.normaliser"].startswith("english")


def test_what_is_registered_is_a_system_and_holds_no_pickle(run):
    from transformers import WhisperForConditionalGeneration

    registry.register(run, "prompts-en")
    for name in ("models:/prompts-en@candidate", "models:/prompts-en/1"):
        found = systems.resolve(name, "en")
        assert found.family == "whisper" and found.sha256 == versions.sha256_of(Path(found.folder))
    held = {p.name for p in Path(found.folder).iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "tokenizer.json"} <= held
    assert {p.rsplit(".", 1)[-1] for p in held} == {"safetensors", "json", "md"} and "optimizer.safetensors" not in held
    theirs = WhisperForConditionalGeneration.from_pretrained(found.folder).state_dict()
    ours = WhisperForConditionalGeneration.from_pretrained(systems.resolve(run.id, "en").folder).state_dict()
    assert all((theirs[key] == ours[key]).all() for key in ours)


def test_the_same_weights_are_one_version_and_better_ones_another(run, small_whisper):
    first = registry.register(run, "prompts-en")
    (run.path / "evaluations" / "finetuned--clean--silence.json").unlink()
    assert registry.register(run, "prompts-en").version == 1
    before = systems.resolve("models:/prompts-en/1", "en").sha256
    better(run, small_whisper, 2)
    second = registry.register(run, "prompts-en")
    assert (second.version, second.rates) == (2, {}) and second.digest != first.digest
    assert where("prompts-en") == {"candidate": 2}
    assert systems.resolve("models:/prompts-en/1", "en").sha256 == before != systems.resolve("models:/prompts-en/2", "en").sha256


def test_a_run_that_a_model_leads_back_to_is_not_deleted(run, reports):
    made = registry.register(run, "voice")
    with pytest.raises(InputError, match=r"registered models lead back[\s\S]*models:/voice/1"):
        upkeep.delete(run, reports)
    assert (run.path / "config.yaml").exists() and made.version == 1
    versions.connect().delete_registered_model("voice")
    assert upkeep.delete(run, reports) > 0, "control"


def test_promote_and_go_back(run, small_whisper):
    registry.register(run, "m")
    assert registry.promote("m").version == 1 and where("m") == {"candidate": 1, "champion": 1}
    with pytest.raises(InputError, match="no previous champion"):
        registry.rollback("m")
    better(run, small_whisper, 2)
    registry.register(run, "m")
    assert where("m") == {"candidate": 2, "champion": 1}
    registry.promote("m")
    assert where("m") == {"candidate": 2, "champion": 2, "previous": 1}
    assert registry.promote("m", 2).version == 2 and where("m")["previous"] == 1, "promoted twice, the one before is not lost"
    assert "champion" in registry.rollback("m").aliases and where("m") == {"candidate": 2, "champion": 1}
    with pytest.raises(InputError, match="no previous champion"):
        registry.rollback("m")
    registry.promote("m", 2)
    assert where("m") == {"candidate": 2, "champion": 2, "previous": 1}


def test_other_weights_than_were_registered_are_refused(run, reports):
    registry.register(run, "m")
    (kept,) = (reports / "mlflow-artifacts").rglob("model.safetensors")
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    with pytest.raises(InputError, match="not those that were registered"):
        systems.resolve("models:/m@candidate", "en")


def test_what_cannot_be_registered_says_why(run, reports, small_whisper):
    for name in ("a/b", "a@b", "", "../x", "x' OR 1=1"):
        with pytest.raises(InputError, match="cannot have this name"):
            registry.register(run, name)
    other = Run.create(run.config, reports)
    with pytest.raises(InputError, match="is not finished(.|\n)*--resume"):
        registry.register(other, "m")
    other.append({"kind": "end", "step": 0, "seconds": 0.0, "best": None})
    with pytest.raises(InputError, match="no validated checkpoint"):
        registry.register(other, "m")
    with open(next((run.path / "checkpoints").glob("step-*")) / "model.safetensors", "ab") as f:
        f.write(b"x")
    with pytest.raises(InputError, match="is damaged"):
        registry.register(run, "m")
    assert registry.versions() == []


def test_what_is_not_there_says_what_is(run):
    with pytest.raises(InputError, match="no registered model of this name(.|\n)*none is registered yet"):
        registry.promote("m")
    registry.register(run, "prompts-en")
    with pytest.raises(InputError, match="no registered model of this name(.|\n)*prompts-en"):
        registry.versions("prompts")
    with pytest.raises(InputError, match="no such version(.|\n)*expected: 1"):
        registry.promote("prompts-en", 7)


def test_a_tracker_that_is_away_is_one_message(run):
    run.change(["tracking.uri=http://127.0.0.1:9"])
    with pytest.raises(InputError, match="does not answer"):
        registry.register(run, "m")
    with pytest.raises(InputError, match="does not answer"):
        registry.versions("m", "http://127.0.0.1:9")


def test_the_registry_is_the_run_s_tracker(run, reports, store):
    uri = f"sqlite:///{reports / 'elsewhere.db'}"
    shutil.copy(store, reports / "elsewhere.db")
    run.change([f"tracking.uri={uri}", "tracking.experiment=elsewhere"])
    mlflow.MlflowClient(tracking_uri=uri).create_experiment("elsewhere", artifact_location=(reports / "elsewhere").as_uri())
    registry.register(run, "m")
    assert registry.versions() == [] and registry.promote("m", uri=uri).aliases == ("candidate", "champion")
    assert systems.resolve("models:/m@champion", "en", uri).name == "m.champion"
    with pytest.raises(InputError, match="cannot be had"):
        systems.resolve("models:/m@champion", "en")


def test_where_there_is_no_registry_nobody_makes_one_by_asking(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "reports", lambda: tmp_path)
    assert registry.versions() == [] and "no model is registered" in CliRunner().invoke(cli.app, ["models"]).output
    for asked in (registry.promote, registry.rollback, registry.versions):
        with pytest.raises(InputError, match="There is no registry of models yet(.|\n)*speechlab register"):
            asked("m")
    assert list(tmp_path.iterdir()) == []


def test_versions_of_others_are_listed_too(run, reports):
    client = mlflow.MlflowClient(tracking_uri=tracking.uri_for(run))
    client.create_registered_model("it's theirs")
    client.create_model_version("it's theirs", source=reports.as_uri(), run_id=None)
    registry.register(run, "m")
    assert [(v.name, v.run) for v in registry.versions()] == [("it's theirs", ""), ("m", run.id)]


def test_the_commands(run, reports, store, monkeypatch):
    def shell(*arguments) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
        return result.exit_code, result.output + str(result.exception or "")

    monkeypatch.setattr(cli_registry.out, "_width", 80)
    assert "no model is registered" in shell("models")[1]
    code, said = shell("register", run.id, "--name", "m")
    assert code == 0 and "clean 10.00 [0.00, 48.54]" in said and "no champion yet: speechlab promote m" in said
    assert {"candidate", "champion", run.id} <= set(shell("promote", "m", "--version", "1")[1].split())
    assert "speechlab gate --candidate models:/m@candidate --baseline models:/m@champion" in shell("register", run.id, "--name", "m")[1]
    assert all(run.id in shell("models", *more)[1] for more in ([], ["m"]))
    shutil.copy(store, reports / "elsewhere.db")
    run.change([f"tracking.uri=sqlite:///{reports / 'elsewhere.db'}", "tracking.experiment=elsewhere"])
    client = mlflow.MlflowClient(tracking_uri=tracking.uri_for(run))
    client.create_experiment("elsewhere", artifact_location=(reports / "elsewhere").as_uri())
    (run.path / "tracking.json").unlink()
    said = shell("register", run.id, "--name", "m")[1]
    command = re.search("speechlab (promote m --uri .*)", said).group(1)
    assert "champion" in shell(*command.split())[1] and registry.versions("m", tracking.uri_for(run))[0].aliases == (
        "candidate",
        "champion",
    )
    code, said = shell("rollback", "m")
    assert code and "no previous champion" in said
