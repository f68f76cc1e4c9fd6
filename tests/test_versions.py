"""models:/name@alias wherever a model can be named; what a run keeps of it when the alias moves; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from evaluated import experiment
from released import better, finished
from typer.testing import CliRunner

from speechlab import (
    cli,
    cluster,
    config,
    corpora,
    evaluation,
    fusion,
    models,
    pairs,
    registry,
    reproduce,
    runs,
    segments,
    sweeps,
    systems,
    training,
    upkeep,
    versions,
)
from speechlab.batches import Clips
from speechlab.errors import InputError
from speechlab.models import weights
from speechlab.runs import Run

CHAMPION = "models:/m@champion"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A SQLite store without anything in it, which takes MLflow seconds to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    versions.connect(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def reports(store, tmp_path, monkeypatch) -> Path:
    """Reports and a cache of their own, but for the corpora."""
    monkeypatch.setattr(config, "reports", lambda: tmp_path / "reports")
    (tmp_path / "reports").mkdir()
    shutil.copy(store, tmp_path / "reports" / "mlflow.db")
    here = versions.fetch.cache()
    (tmp_path / "cache").mkdir()
    for name in ("corpora", "downloads", "conditions"):
        if (here / name).exists():
            (tmp_path / "cache" / name).symlink_to(here / name)
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "reports"


@pytest.fixture
def run(reports, small_whisper) -> Run:
    """A run whose best checkpoint is the champion of ``m``."""
    made = finished(reports, small_whisper)
    registry.register(made, "m")
    registry.promote("m")
    return made


@pytest.fixture
def champion(run) -> str:
    """SHA-256 of the champion's file."""
    return versions.sha256_of(run.path / "checkpoints" / "step-000001")


def move(run: Run, start: Path) -> str:
    """Register and promote other weights; their SHA-256."""
    made = better(run, start, 2)
    registry.register(run, "m")
    registry.promote("m")
    return versions.sha256_of(made.path)


def begun(made: config.Experiment) -> weights.Weights:
    return training.begin(made, Clips.of(corpora.configured(made.corpus)))


def shell(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    return result.exit_code, result.output + str(result.exception or "")


def exported(name: str, folder: Path) -> Path:
    code, said = shell("export", name, folder)
    assert code == 0, said
    return folder


def evaluated(name: str) -> Path:
    """The checkpoint that an evaluation by this name speaks of."""
    table = evaluation.kept(name)
    meta = json.loads(table.with_suffix(".json").read_text())
    made = next(c for c in training.checkpoints.existing(table.parents[1] / "checkpoints") if c.digest == meta["weights_sha256"])
    return made.path


def written(folder: Path, name: str) -> Path:
    path = folder / "asked.yaml"
    path.write_text(experiment(name).to_yaml())
    return path


def split_with(name: str) -> Path:
    """The folder that a splitter of long recordings will load."""
    return Path(segments.splitter(name, "en").args[0])


# where a model can be named, and which folder of weights that leads to
PLACES = {
    "train, model.weights": lambda name, tmp: begun(Run.create(experiment(name)).config).path,
    "tune, a trial's model.weights": lambda name, tmp: begun(sweeps.Sweep.create(experiment(name), [], 1, tmp).runs[0].config).path,
    "fetch and --dry-run, model.weights": lambda name, tmp: begun(config.load(written(tmp, name))).path,
    "evaluate, gate, 04_evaluate": lambda name, tmp: Path(systems.resolve(name, "en").folder),
    "corpus check --model": lambda name, tmp: split_with(name),
    "01_corpus, weights": lambda name, tmp: weights.resolve("whisper", name).path,
    "compare, 05_errors, 06_compare": lambda name, tmp: evaluated(name),
    "compare, one evaluation": lambda name, tmp: evaluated(f"{name}:finetuned--clean--silence"),
    "09_language_model, bundle, report --run": lambda name, tmp: Path(list(evaluation.systems(runs.find(name)).values())[-1].folder),
    "export": lambda name, tmp: exported(name, tmp / "exported"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_registered_model_loads_wherever_a_model_can_be_named(place, run, champion, tmp_path):
    for n, name in enumerate((CHAMPION, "models:/m/1")):
        (tmp_path / str(n)).mkdir()
        assert versions.sha256_of(PLACES[place](name, tmp_path / str(n))) == champion
    for name in ("models:/m@nobody", "models:/nobody@champion", "models:/m/7", "models:/m"):
        with pytest.raises((InputError, AssertionError), match="cannot be had|not named like this"):
            PLACES[place](name, tmp_path)


def test_each_place_is_in_the_table_of_those_that_resolve_weights(root):
    """Whoever turns a name into weights goes through one of the functions that the table asks."""
    knowing = {p.stem for p in (root / "speechlab").rglob("*.py") if "weights.resolve(" in p.read_text()}
    assert knowing == {"__init__", "segments", "systems"}


def test_what_is_compared_are_the_registered_weights_not_those_since(run, small_whisper):
    both = pairs.pair(f"{run.id}:pretrained--clean--full", CHAMPION)
    assert both.names_b == (CHAMPION,) and both.b[0].errors == 1
    move(run, small_whisper)
    with pytest.raises(InputError, match="holds no such evaluation(.|\n)*nothing evaluated"):
        pairs.pair(f"{run.id}:pretrained--clean--full", CHAMPION)
    assert pairs.pair(f"{run.id}:pretrained--clean--full", "models:/m/1").b[0].errors == 1


# --- what a run keeps of it ------------------------------------------------------------------------------------


def test_a_run_keeps_the_version_and_its_hash_when_the_alias_moves(run, champion, small_whisper):
    made = Run.create(experiment(CHAMPION))
    assert (made.config.model.weights, made.config.model.revision) == ("models:/m/1", champion)
    later = move(run, small_whisper)
    assert later != champion and begun(made.config).sha256 == champion
    again = Run.create(config.load(made.path / "config.yaml"))
    assert again.config.signature == made.config.signature and begun(again.config).sha256 == champion
    other = Run.create(experiment(CHAMPION))
    assert other.config.model.weights == "models:/m/2" and begun(other.config).sha256 == later
    assert other.config.signature != made.config.signature
    assert begun(experiment(CHAMPION)).sha256 == later, "the control: an alias that nobody pins follows"


def test_where_the_weights_are_here_no_registry_is_needed_and_the_other_way_round(run, champion, reports, tmp_path):
    made = Run.create(experiment(CHAMPION))
    (reports / "mlflow.db").rename(reports / "away.db")
    assert begun(made.config).sha256 == champion and Run.create(made.config).config == made.config
    shutil.rmtree(tmp_path / "cache" / "registered")
    with pytest.raises(InputError, match="There is no registry of models yet"):
        begun(made.config)
    assert not (reports / "mlflow.db").exists(), "nobody makes an empty one by asking"
    (reports / "away.db").rename(reports / "mlflow.db")
    assert begun(made.config).sha256 == champion
    kept = next((tmp_path / "cache" / "registered").rglob("model.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert begun(made.config).sha256 == champion, "a damaged one is fetched anew"


def test_a_rerun_is_told_where_the_weights_are(run):
    made = Run.create(experiment(CHAMPION))
    made.append({"kind": "start", "steps": 1, "epochs": 1, "workers": 1, "device": "cpu", "precision": "fp32", "resumed_from": None})
    assert f'tracking.uri="sqlite:///{made.path.parent}/mlflow.db"' in list(reproduce._settings(made))
    run.append({"kind": "start", "steps": 1, "epochs": 1, "workers": 1, "device": "cpu", "precision": "fp32", "resumed_from": None})
    assert not any(item.startswith("tracking.uri") for item in reproduce._settings(run))


@pytest.mark.slow
def test_a_rerun_trains_from_the_same_weights_though_the_alias_has_moved(run, champion, small_whisper):
    def trained(wanted: config.Experiment) -> Run:
        plain = wanted.model_dump()
        plain["cluster"] |= {"workers": 0}
        plain["tracking"] |= {"enabled": False}
        plain["training"] |= {"epochs": 1, "batch_clips": 2, "micro_batches": 1}
        made = Run.create(config.validate(plain, "test"))
        assert cluster.drive(made) == "finished"
        return made

    first = trained(experiment(CHAMPION))
    record = first.provenance["weights"]
    assert (record["name"], record["source"], record["sha256"], record["revision"]) == ("models:/m/1", "registry", champion, champion)
    later = move(run, small_whisper)
    again, other = trained(config.load(first.path / "config.yaml")), trained(experiment(CHAMPION))
    ends = [training.checkpoints.existing(made.path / "checkpoints")[-1].digest for made in (first, again, other)]
    assert ends[0] == ends[1] != ends[2] and other.provenance["weights"]["sha256"] == later


# --- what is refused -------------------------------------------------------------------------------------------


def test_what_cannot_be_used_says_what_there_is(run, champion, reports):
    with pytest.raises(InputError, match="expected: models:/m@candidate, models:/m@champion, models:/m/1"):
        versions.folder("models:/m@best")
    with pytest.raises(InputError, match="expected: one of the models m\n"):
        versions.folder("models:/n@champion")
    with pytest.raises(InputError, match="not those that were registered"):
        versions.folder(CHAMPION, sha256="0" * 64)
    with pytest.raises(InputError, match="no such revision(.|\n)*64 hex digits"):
        begun(experiment().model_copy(update={"model": config.ModelConfig(weights=CHAMPION, revision="main")}))
    with pytest.raises(InputError, match="registered model cannot be used(.|\n)*model_type 'whisper', expected 'wav2vec2'"):
        models.begin(config.ModelConfig(family="wav2vec2", weights=CHAMPION), "en", [], 1)
    with pytest.raises(InputError, match="deleted by its own name"):
        upkeep.named(CHAMPION)
    assert run.path.exists()
    away = f"sqlite:///{reports / 'nowhere.db'}"
    with pytest.raises(InputError, match="no registry of models yet(.|\n)*tracking.uri"):
        versions.folder(CHAMPION, away)
    shutil.rmtree(reports / "mlflow-artifacts")
    assert versions.folder(CHAMPION), "it is in the cache"
    shutil.rmtree(versions.fetch.cache() / "registered")
    with pytest.raises(InputError, match="files cannot be had"):
        versions.folder(CHAMPION)


def test_what_others_have_registered_is_pinned_by_its_file(reports, small_whisper):
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{reports / 'mlflow.db'}")
    client.create_registered_model("theirs")
    client.create_model_version("theirs", source=small_whisper.as_uri())
    client.set_registered_model_alias("theirs", "champion", "1")
    made = Run.create(experiment("models:/theirs@champion"))
    assert made.config.model.revision == versions.sha256_of(small_whisper) == begun(made.config).sha256
    with pytest.raises(InputError, match="run that made the registered model is not here(.|\n)*no run of the lab"):
        runs.find("models:/theirs@champion")
    client.set_model_version_tag("theirs", "1", versions.RUN_TAG, "../../etc")
    with pytest.raises(InputError, match="is not here"):
        runs.find("models:/theirs@champion")


def test_a_language_model_s_mixer_refuses_what_is_no_ctc_model(run):
    system = list(evaluation.systems(runs.find(CHAMPION)).values())[-1]
    with pytest.raises(InputError, match="Only what a CTC model writes"):
        fusion.emissions(models.load(system.family, system.folder, "en"), [])
