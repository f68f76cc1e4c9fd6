"""Systems by name, and one function that evaluates them."""

from __future__ import annotations

import mlflow
import pytest
from evaluated import experiment

from speechlab import cases, checkpoints, config, corpora, evaluation, models, optim, results, systems, versions
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
        versions.folder("models:/small")


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
    with pytest.raises(InputError, match="by its own config"):
        systems.measure([run.id], overrides=["evaluation.latency=false"], progress=False)
    with pytest.raises(InputError, match="named twice"):
        systems.measure([run.id, str(run.path)], tmp_path / "config.yaml", progress=False)


@pytest.fixture
def few(reports):
    """A corpus of a few test clips, and the config that says so."""
    settings = experiment()
    (reports / "few.yaml").write_text(settings.to_yaml())
    return corpora.configured(settings.corpus), reports / "few.yaml"


def table(path, texts: dict[str, str]):
    path.write_text("id,text\n" + "".join(f'{id},"{text}"\n' for id, text in texts.items()))
    return str(path)


def test_somebody_s_hypotheses_are_an_evaluation(few, tmp_path):
    corpus, settings = few
    said = {cut.id: cut.supervisions[0].text for cut in corpus.cuts["test"]}
    *right, last = said
    theirs = table(tmp_path / "their system.csv", said | {last: "zebra " * 3})
    done = systems.measure([theirs], settings, out=tmp_path / "out", progress=False)
    (found,) = done.evaluations
    assert (found.system, found.condition, found.context, found.label) == ("their.system", "clean", "", "their.system")
    errors = dict(zip(found.rows.id, found.scores("english").errors_U, strict=True))
    assert errors[last] >= 3 and all(errors[id] == 0 for id in right)
    assert found.rtfx != found.rtfx and found.timed is None and not found.notes
    assert evaluation.load(done.folder)[0].wer == found.wer
    row = results.speeds(results.summary(done.evaluations, done.experiment.evaluation))
    assert row["RTFx"].isna().all()

    again = systems.measure([str(done.folder / "their.system--clean--.hyp.trn")], settings, out=tmp_path / "again", progress=False)
    assert again.evaluations[0].scores("english").errors == found.scores("english").errors, "the lab's own trn fits too"
    opened = cases.opened(str(done.folder), "", settings)
    assert opened.system is None and opened.missing == "somebody's hypotheses" and len(opened.cuts) == len(said)


def test_hypotheses_that_do_not_fit_the_clips(few, tmp_path):
    corpus, settings = few
    said = {cut.id: cut.supervisions[0].text for cut in corpus.cuts["test"]}
    first = next(iter(said))
    lacking = table(tmp_path / "a.csv", {id: text for id, text in said.items() if id != first})
    beyond = table(tmp_path / "b.csv", {**said, "nobody": "x"})
    how = {"config": settings, "out": tmp_path / "out", "progress": False}
    with pytest.raises(InputError, match="1 of .* have no hypothesis(.|\n)*--missing deleted"):
        systems.measure([lacking], **how)
    with pytest.raises(InputError, match="1 hypotheses have no reference(.|\n)*test clips of prompts"):
        systems.measure([beyond], **how)
    with pytest.raises(InputError, match="Unknown policy"):
        systems.measure([beyond], **how, extra="drop")
    with pytest.raises(InputError, match="named twice"):
        systems.measure([lacking, lacking], **how)
    assert not (tmp_path / "out").exists()
    (found,) = systems.measure([lacking], **how, missing="deleted").evaluations
    assert found.notes == {first: "no answer"} and found.scores("english").deletions == len(said[first].split())
    (found,) = systems.measure([beyond], **how, extra="leave").evaluations
    assert found.wer == 0
