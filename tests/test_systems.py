"""Systems by name, and one function that evaluates them."""

from __future__ import annotations

import mlflow
import pytest
from evaluated import experiment

from speechlab import checkpoints, config, evaluation, models, optim, systems, tracking
from speechlab.errors import InputError
from speechlab.runs import Run


@pytest.fixture
def reports(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "reports", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def run(reports, small_whisper) -> Run:
    made = Run.create(experiment(str(small_whisper)), reports)
    model = models.load("whisper", small_whisper, "en")
    model.net.model.decoder.layer_norm.bias.data.mul_(1.01)
    checkpoints.save(made.path / "checkpoints", model, optim.adamw(model, made.config.optim), {"step": 1, "epoch": 0, "wer": 0.5})
    return made


def test_a_run_is_its_best_checkpoint_or_what_it_began_with(run, small_whisper):
    best, start = systems.resolve(run.id, "en"), systems.resolve(f"{run.id}:pretrained", "en")
    assert best.name == run.id and start.name == f"{run.id}.pretrained"
    assert best.sha256 != start.sha256 and start.folder == str(small_whisper)
    assert systems.resolve("latest", "en") == best == systems.resolve(str(run.path), "en")
    with pytest.raises(InputError, match=r'no such system(.|\n)*did you mean "pretrained"'):
        systems.resolve(f"{run.id}:pretraind", "en")


def test_weights_are_found_by_name_and_family(small_whisper, tiny_en, reports):
    assert systems.resolve("tiny.en", "en").folder == str(tiny_en)
    found = systems.resolve(str(small_whisper), "en")
    assert found.family == "whisper" and "/" not in found.name and "--" not in found.name
    assert systems.resolve("whisper:tiny.en", "en").name == "tiny.en"
    with pytest.raises(InputError, match='Unknown weights "tiny.eng"'):
        systems.resolve("tiny.eng", "en")
    with pytest.raises(InputError, match="Unknown weights"):
        systems.resolve("wav2vec2:tiny.en", "en")


def test_the_family_is_what_the_folder_says(tmp_path, prompts, reports):
    from speechlab.config import ModelConfig, ShapeConfig

    texts = [c.supervisions[0].text for c in prompts.cuts["train"]]
    made = ModelConfig(family="conformer", shape=ShapeConfig(dim=32, layers=1, heads=2, kernel=15))
    models.family_class("conformer").create(made, None, "en", texts, tmp_path)
    found = systems.resolve(str(tmp_path), "en")
    assert found.family == "conformer" and found.contexts == ("clip",)


def test_a_registered_model_is_downloaded(small_whisper, reports):
    uri = f"sqlite:///{reports / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    place = (reports / "artifacts").as_uri()
    experiment_id = client.create_experiment("asr", artifact_location=place)
    record = client.create_run(experiment_id)
    client.log_artifacts(record.info.run_id, str(small_whisper), "checkpoint")
    client.create_registered_model("small")
    source = f"{record.info.artifact_uri}/checkpoint"
    version = client.create_model_version("small", source=source, run_id=record.info.run_id).version
    client.set_registered_model_alias("small", "champion", version)
    found = systems.resolve("models:/small@champion", "en")
    assert found.name == "small.champion" and found.family == "whisper"
    assert found.sha256 == systems.resolve(str(small_whisper), "en").sha256
    assert systems.resolve(f"models:/small/{version}", "en").sha256 == found.sha256
    for name in ("models:/small@challenger", "models:/nobody@champion"):
        with pytest.raises(InputError, match="cannot be had"):
            systems.resolve(name, "en")
    with pytest.raises(InputError, match="not named like this"):
        tracking.model("models:/small")


@pytest.mark.slow
def test_several_are_measured_into_a_folder_of_their_own(run, small_whisper, reports, tmp_path):
    (tmp_path / "config.yaml").write_text(experiment(str(small_whisper), conditions=["clean", "gsm"]).to_yaml())
    names = [run.id, str(small_whisper)]
    done = systems.measure(names, tmp_path / "config.yaml", progress=False)
    assert done.folder.parent == reports / "evaluations"
    assert [(e.system, e.condition, e.context) for e in done.evaluations if e.context == "silence"] == [
        (s, c, "silence") for s in (run.id, systems.resolve(names[1], "en").name) for c in ("clean", "gsm")
    ]
    assert {e.name for e in evaluation.load(done.folder)} == {e.name for e in done.evaluations}
    alone = systems.measure([run.id], progress=False)
    assert alone.folder == run.path / "evaluations" and {e.system for e in alone.evaluations} == {"pretrained", "finetuned"}
    with pytest.raises(InputError, match="named twice"):
        systems.measure([run.id, str(run.path)], tmp_path / "config.yaml", progress=False)
