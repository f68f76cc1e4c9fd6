"""Configs: every bad value refused with got, expected and what to do; identity; the files that ship."""

from __future__ import annotations

import re
import sys
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from speechlab import config
from speechlab.config import Experiment, Section, load
from speechlab.errors import InputError

HEAD = "name: a\nquestion: Does it?\n"
CONFIGS = {
    "conformer.yaml",
    "italian.yaml",
    "librispeech-conformer.yaml",
    "librispeech-wav2vec2.yaml",
    "librispeech.yaml",
    "noise.yaml",
    "polyglot.yaml",
    "quickstart.yaml",
    "smoke.yaml",
    "wav2vec2-pretraining.yaml",
    "wav2vec2.yaml",
}
MANIFESTS = {"cluster/rayjob.yaml", "serving/canary.yaml"}  # no experiments: tests/test_rayjob.py, tests/test_routes.py
IDENTITY_IGNORES = {"name", "question", "corpus.root", "corpus.decisions", "cluster", "tracking"} | {
    f"evaluation.{leaf}" for leaf in ("noise", "batch_seconds", "latency", "workers")
}


def refused(path, overrides=()) -> str:
    with pytest.raises(InputError) as e:
        load(path, overrides)
    return str(e.value)


# --- bad files ---


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        # unknown keys, with the nearest known one
        ("training: {epocs: 1}", ["training.epocs: got the unknown key 'epocs'", 'did you mean "epochs"?', "batch_seconds"]),
        ("sed: 1", ["sed: got the unknown key", 'did you mean "seed"?']),
        ("zzzzzz: 1", ["zzzzzz: got the unknown key", "known: augment, cluster, context"]),
        ("1: x", ["got the unknown key '1'"]),
        ("corpus: {1: x}", ["corpus.1: got the unknown key '1'", "known: band, check, decisions"]),
        # wrong types; what YAML 1.1 read differently from what was meant
        ("optim: {lr: 1e-4}", ["optim.lr: got '1e-4' (str), expected a valid number; write 0.0001 without quotes"]),
        ("optim: {lr: 3e-5}", ["write 3.0e-05 without quotes"]),
        ('training: {epochs: "1"}', ["training.epochs: got '1' (str), expected a valid integer; write 1 without quotes"]),
        ("training: {epochs: 1e1}", ["got '1e1' (str)", "write 10 without quotes"]),
        ("training: {epochs: 2.0}", ["got 2.0 (float), expected a valid integer; write 2 without quotes"]),
        ("training: {epochs: 2.5}", ["got 2.5 (float), expected a valid integer\n"]),
        ("training: {epochs: many}", ["got 'many' (str), expected a valid integer\n"]),
        ("seed: true", ["seed: got True (bool), expected a valid integer"]),
        ("evaluation: {batch_seconds: true}", ["evaluation.batch_seconds: got True (bool), expected a valid number"]),
        ("evaluation: {conditions: []}", ["evaluation.conditions: got []", "at least 1 item"]),
        ("evaluation: {search: {lexicon: false, word_score: 1.0}}", ["got word_score 1.0 without a lexicon", "expected 0"]),
        ("corpus: {language: no}", ["corpus.language: got False (bool), expected a valid string; write it in quotes"]),
        ("model: {revision: 2024-01-02}", ["expected a valid string; write it in quotes"]),
        ('tracking: {enabled: "yes"}', ["tracking.enabled: got 'yes' (str), expected a valid boolean"]),
        ("corpus: {check: {min_snrs: 3}}", ["corpus.check.min_snrs: got the unknown key 'min_snrs'", 'did you mean "min_snr"?']),
        ("augment: {speed: {factor: 1.1}}", ["augment.speed.factor: got the unknown key 'factor'", 'did you mean "factors"?']),
        ("augment: {noise: {low: 30.0, high: 10.0}}", ["augment.noise", "low", "high"]),
        ("augment: {noise: {probability: 1.5}}", ["augment.noise.probability: got 1.5 (float), expected less than or equal to 1"]),
        ("corpus: 3", ["corpus: got 3 (int), expected a section with any of name, language"]),
        ("corpus:", ["corpus: got None (NoneType), expected a section"]),
        ("corpus: [prompts]", ["corpus: got ['prompts'] (list), expected a section"]),
        # out of range
        ("training: {epochs: 0}", ["training.epochs: got 0 (int), expected greater than or equal to 1"]),
        ("optim: {lr: -1.0}", ["optim.lr: got -1.0 (float), expected greater than 0"]),
        ("optim: {lr: .nan}", ["optim.lr: got nan (float), expected a finite number"]),
        ("optim: {eps: .inf}", ["optim.eps: got inf (float), expected a finite number"]),
        ("optim: {lr: nan}", ["optim.lr: got 'nan' (str), expected a valid number\n"]),
        ("corpus: {max_seconds: 1:30}", ["corpus.max_seconds: got 90 (int), expected less than or equal to 30"]),
        ("seed: 2147483648", ["seed: got 2147483648 (int), expected less than"]),
        (f"seed: {'9' * 4000}", ["seed: got 9999"]),
        ("training: {precision: fp8}", ["training.precision: got 'fp8' (str), expected 'fp32', 'bf16' or 'fp16'"]),
        ("cluster: {workers: 2, workers_min: 4}", ["got cluster.workers_min 4 above cluster.workers 2", "expected", "lower it"]),
        ("training: {average: 5}", ["got average 5 above keep_last 3", "expected", "raise keep_last"]),
        ("model: {objective: pretraining}", ["got objective pretraining for whisper", "expected it for wav2vec2", "set objective"]),
        (
            "model: {family: wav2vec2, objective: pretraining}\ntraining: {patience: 2}",
            ["training.patience 2", "no error rate to go by", "to null"],
        ),
        ("model: {lora: {rank: 0}}", ["model.lora.rank: got 0", "greater than or equal to 1"]),
        ("model: {shape: {dims: 3}}", ["model.shape.dims: got the unknown key 'dims'", 'did you mean "dim"?']),
        ("tracking: {experiment: ''}", ["expected text to have at least 1 character"]),
        ("tracking: {uri: 'postgresql://me:hunter2@host/db'}", ["tracking.uri: got a URI with a password", "expected", "PGPASSWORD"]),
        ("tracking: {uri: 'postgresql://me:hunter2/#@host/db'}", ["tracking.uri: got a URI with a password"]),
        ("tracking: {uri: 'postgresql://host/db?user=me&password=hunter2'}", ["tracking.uri: got a URI with a password"]),
        ("tracking: {uri: 'https://hunter2@host'}", ["tracking.uri: got a URI with a password", "MLFLOW_TRACKING_PASSWORD"]),
        ("tracking: {artifacts: 's3://me:hunter2@host/path'}", ["tracking.artifacts: got a URI with a password", "AWS_SECRET"]),
        ("cluster: {storage: 's3://me:hunter2@host/path'}", ["cluster.storage: got a URI with a password"]),
        # values that do not fit together
        ("optim: {lr: 1.0e-5, lr_min: 0.1}", ["optim: got lr_min 0.1 above lr 1e-05, expected lr_min <= lr; lower lr_min"]),
        ("context: {margin_min: 3.0}", ["context: got margin_max 2.0 below margin_min 3.0", "expected", "swap them"]),
        ("cluster: {workers: 3}", ["got training.micro_batches 4 for cluster.workers 3", "expected", "multiple of workers"]),
        # YAML that is not plain
        ("seed: 1\nseed: 2", ['the key "seed" stands twice', "line 4"]),
        ("optim: {lr: 0.1, lr: 0.2}", ['the key "lr" stands twice']),
        ("seed: &one 1", ['the anchor "one" is not accepted', "line 3"]),
        ("corpus: &c {name: prompts}\nmodel: *c", ['the anchor "c" is not accepted']),
        ("model: *nowhere", ['the anchor "nowhere" is not accepted']),
        ("<<: {seed: 3}", ["a key must be plain text"]),
        ("? [a, b]\n: c", ["a key must be plain text"]),
        ("seed: !!python/object/apply:os.system [true]", ["python/object/apply:os.system", "is not accepted", "no tags"]),
        ("seed: !!int 3", ["is not accepted"]),
        ("seed: !mine 3", ['the tag "!mine" is not accepted']),
        ("seed: [1", ["line 4"]),
        ("seed: 1\n\tx: 2", ["cannot start any token"]),
        ("seed: 2001-99-99", ["month must be in 1..12"]),
        ("seed: 0b_", ["invalid literal"]),
        pytest.param(f"seed: {'[' * 5000}", ["recursion"], id="deep"),
        pytest.param(f"seed: {'9' * 5000}", ["digits"], id="long"),
        ("---\nseed: 1", ["single document"]),
        ("seed: \0", ["special characters are not allowed"]),
    ],
)
def test_bad_value_is_refused_with_a_remedy(yaml, said, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + yaml + "\n")
    message = refused(path)
    for part in [*said, str(path), "got", "expected", "do:"]:
        assert part in message, message
    assert len(message) < 1200


def test_a_password_is_not_shown_and_a_uri_without_one_is_taken(plain):
    for key, uri in {"tracking.uri": "postgresql://me:hunter2@host/db", "tracking.artifacts": "s3://b/?aws_secret_key=hunter2"}.items():
        said = refused(plain, [f"{key}={uri}"])
        assert "hunter2" not in said and f"{key}: got a URI with a password" in said
    for uri in ("postgresql://me@host:5432/db", "sqlite:////runs/a:b@c.db", "http://127.0.0.1:5000", "postgresql:///db?host=/run/pg"):
        assert config.load(plain, [f"tracking.uri={uri}"]).tracking.uri == uri


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing"),
        ("# only a comment\n", "nothing"),
        ("- a\n- b\n", "a list"),
        ("just text", "a str"),
        ("seed: 1\n", "name: got nothing, expected a value; add a line name: ..."),
        ("name: a b\nquestion: x\n", "name: got 'a b' (str), expected text to match pattern"),
        ("name: ../../etc\nquestion: x\n", "name: got '../../etc'"),
        ("name: a\nquestion: ''\n", "question: got ''"),
    ],
)
def test_bad_file_is_refused_with_a_remedy(text, said, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    message = refused(path)
    for part in (said, "got", "expected", "do:"):
        assert part in message


def test_all_errors_at_once(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + 'sed: 1\ntraining: {epochs: "3"}\noptim: {lr: 1e-4, clip: 0}\ncontext: {margin_min: 5.0}\n')
    message = refused(path)
    assert "5 values cannot be used" in message
    for where in ("- sed:", "- training.epochs:", "- optim.lr:", "- optim.clip:", "- context:"):
        assert message.count(where) == 1
    problems = [line for line in message.splitlines() if line.startswith("- ")]
    assert len(problems) == 5 and all("got" in line and "expected" in line for line in problems)


def test_missing_file_lists_what_there_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "do:       name an existing file" in refused("nowhere.yaml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.yaml").write_text("")
    message = refused("nowhere.yaml")
    for part in ("got:", "nowhere.yaml", "expected: a YAML file", "do:       choose one of: configs/mine.yaml"):
        assert part in message


def test_a_notebook_in_a_folder_of_the_project_means_the_same_file(tmp_path, monkeypatch):
    for folder in ("configs", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configs/mine.yaml").write_text(HEAD)
    for folder in (".", "notebooks"):
        monkeypatch.chdir(tmp_path / folder)
        assert load("configs/mine.yaml").name == "a"
        assert config.reports() == tmp_path / "reports"
    assert "choose one of: configs/mine.yaml" in refused("configs/other.yaml")


def test_folder_is_refused(tmp_path):
    message = refused(tmp_path)
    for part in ("got:", "directory", "expected: a readable file", "do:"):
        assert part in message


def test_latin_1_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes((HEAD + "# café\n").encode("latin-1"))
    message = refused(path)
    for part in ("got:", "expected: UTF-8 text", "do:       save it as UTF-8"):
        assert part in message


def test_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(HEAD, "utf-8-sig")
    assert load(path).name == "a"


# --- overrides ---


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text(HEAD)
    return path


def test_overrides_replace_values(plain):
    got = load(plain, ["training.epochs=1", "optim.lr = 1.0e-3", "cluster.address=null", "question=Why?", "training={epochs: 2}"])
    assert (got.training.epochs, got.optim.lr, got.cluster.address, got.question) == (2, 1e-3, None, "Why?")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(st.characters(codec="utf-8"))
)


@given(st.one_of(VALUES, st.lists(VALUES), st.just({})))
def test_any_value_can_be_written_as_an_override_on_one_line(value):
    item = config.override("a.b", value)
    assert len(item.splitlines()) == 1
    found: dict = {}
    config._override(found, item)
    assert found == {"a": {"b": value}}
    assert type(found["a"]["b"]) is type(value)


def test_problems_are_known_by_the_names_of_their_values(plain):
    with pytest.raises(InputError) as error:
        load(plain, ["training.epochs=0", "optim.lr=x", "context.margin_min=9.0", "nonsense=1"])
    assert set(error.value.problems) == {"training.epochs", "optim.lr", "context", "nonsense"}
    assert error.value.problems["training.epochs"].startswith("got 0 (int), expected greater than or equal to 1")
    assert all(f"- {where}: {why}" in str(error.value) for where, why in error.value.problems.items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epochs", "section.key=value"),
        ("=3", "section.key=value"),
        ("name.first=x", "as if it were a section"),
        ("training.epocs=3", 'did you mean "epochs"?'),
        ("training.epochs=0", "greater than or equal to 1"),
        ("optim.lr=1e-4", "write 0.0001 without quotes"),
        ("training.epochs=[1", "override training.epochs is not YAML"),
        ("seed=!!python/name:os.system", "is not accepted"),
        ("training..epochs=1", "got the unknown key ''"),
    ],
)
def test_bad_override_is_refused_with_a_remedy(plain, override, said):
    message = refused(plain, [override])
    for part in (said, "got", "expected", "do:"):
        assert part in message


def test_defaults_follow_the_family():
    whisper, conformer = (Experiment(name="a", question="?", model={"family": f}) for f in ("whisper", "conformer"))
    assert (whisper.model.weights, conformer.model.weights) == ("tiny.en", None)
    assert whisper.context.full_fraction > 0 == conformer.context.full_fraction == conformer.context.margin_max
    assert Experiment(name="a", question="?", model={"family": "conformer"}, context={"margin_max": 1.0}).context.margin_max == 1.0


# --- identity ---


def leaves(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted name and type of every value that is not a section."""
    found = []
    for name, info in model.model_fields.items():
        kind = info.annotation
        found += leaves(kind, f"{prefix}{name}.") if isinstance(kind, type) and issubclass(kind, BaseModel) else [(prefix + name, kind)]
    return found


def another(value: Any, kind: Any) -> Any:
    """A different value that fits too."""
    options = typing.get_args(kind)
    if value is None and options and isinstance(options[0], type) and issubclass(options[0], Section):
        return options[0]().model_dump()  # a section that is not asked for by default
    if typing.get_origin(kind) is typing.Literal:
        return next(option for option in options if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) or (value is None and str in options):
        return f"{value or ''}x"
    if isinstance(value, tuple):
        return value[:-1] or ("quiet",)
    if isinstance(value, float) or value == 4500:  # half of a limit is below it, too
        return type(value)(value / 2)
    return (value or 0) * 2 if value else 1


WHERE_NONE = {"model.shape.dim": 64, "model.shape.ffn": 64, "training.ema": 0.99, "training.average": 2}  # 1 does not fit
BESIDE = {"model.objective": {"family": "wav2vec2"}}  # what a value needs beside it


def changed(leaf: str, kind: Any) -> tuple[Experiment, Experiment]:
    base = Experiment(name="a", question="Does it?")
    if leaf in BESIDE:
        base = Experiment.model_validate(base.model_dump() | {"model": BESIDE[leaf]})
    values = base.model_dump()
    *sections, last = leaf.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[last] = WHERE_NONE.get(leaf) or another(place[last], kind)
    return base, Experiment.model_validate(values)


@pytest.mark.parametrize(("leaf", "kind"), leaves(Experiment), ids=lambda x: x if isinstance(x, str) else "")
def test_signature_changes_with_what_changes_results_only(leaf, kind):
    base, other = changed(leaf, kind)
    assert base != other
    ignored = leaf in IDENTITY_IGNORES or leaf.split(".")[0] in IDENTITY_IGNORES
    assert (base.signature == other.signature) == ignored


def test_signature_does_not_depend_on_how_a_number_is_written(tmp_path):
    signatures = set()
    for text in ("training: {batch_seconds: 60}", "training: {batch_seconds: 60.0}", "training: {batch_seconds: 6.0e+1}\nseed: 1"):
        (tmp_path / "x.yaml").write_text(HEAD + text)
        signatures.add(load(tmp_path / "x.yaml").signature)
    assert len(signatures) == 1
    assert re.fullmatch("[0-9a-f]{12}", signatures.pop())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    lr=st.floats(1e-6, 1, exclude_min=True),
    score=st.floats(-20, 60),
    limit=st.none() | st.integers(1, 10**9),
    revision=st.none() | st.sampled_from(["no", "1e-4", "2024-01-02", "null", "~", "0b1", "<<", "=", "1:30", "'", "#"]),
)
@example(question="one\x85two\u2028three\u2029", lr=1e-5, score=0.0, limit=None, revision=None)
@example(question="é " * 200 + "\n\r\t\0 x", lr=1e-5, score=-0.0, limit=None, revision="no")
def test_resolved_yaml_reads_back(tmp_path, question, lr, score, limit, revision):
    before = Experiment.model_validate(
        {
            "name": "a",
            "question": question,
            "optim": {"lr": lr},
            "evaluation": {"search": {"word_score": score}},
            "corpus": {"limit": limit},
            "model": {"revision": revision},
        }
    )
    path = tmp_path / "x.yaml"
    path.write_bytes(before.to_yaml().encode())
    after = load(path)
    assert after == before
    assert after.signature == before.signature
    assert after.to_yaml() == before.to_yaml()


def test_resolved_yaml_spells_every_default_out():
    text = Experiment(name="a", question="Does it?").to_yaml()
    for leaf, _ in leaves(Experiment):
        assert re.search(rf"^ *{leaf.split('.')[-1]}:", text, re.MULTILINE), leaf


def test_what_was_chosen_is_told_apart_from_the_defaults():
    experiment = Experiment(name="a", question="Does it?", training={"epochs": 7}, augment={"gain": {}})
    chosen, usual = experiment.told()
    assert chosen["name"] == "a" and chosen["model.family"] == "whisper" and chosen["training.epochs"] == 7
    assert any(name.startswith("augment.gain") for name in chosen), "a section that was switched on"
    assert "training.micro_batches" in usual and not chosen.keys() & usual.keys()
    assert {*chosen, *usual} >= {leaf for leaf, _ in leaves(Experiment) if not leaf.startswith("augment")} - {"question"}


@pytest.mark.parametrize("leaf", [leaf for leaf, _ in leaves(Experiment)])
def test_frozen(leaf):
    experiment = Experiment(name="a", question="Does it?")
    *sections, last = leaf.split(".")
    place = experiment
    for section in sections:
        place = getattr(place, section)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(place, last, getattr(place, last))


# --- the files that ship ---


def test_every_config_is_known(root):
    assert {str(path.relative_to(root / "configs")) for path in (root / "configs").rglob("*") if path.is_file()} == CONFIGS | MANIFESTS


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_config_loads_and_says_what_it_costs(name, root):
    path = root / "configs" / name
    experiment = load(path)
    assert experiment.name == path.stem
    assert load(path).signature == experiment.signature
    header = re.match(r"(#.*\n)+", path.read_text("utf-8"))
    assert header
    for line in ("command", "cost", "expected"):
        assert re.search(rf"^# +{line}: +\S", header[0], re.MULTILINE), f"{name}: the header lacks its {line} line"
    assert f"configs/{name}" in header[0]


def test_reading_a_config_loads_no_heavy_library(root):
    import subprocess

    code = f"import sys; from speechlab.config import load; load({str(root / 'configs/quickstart.yaml')!r})"
    code += "; print(*{'torch', 'ray', 'mlflow', 'panel', 'transformers', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_yaml_floats_read_back():
    for x in (1e-4, 1e-5, 3.5e-7, 1e16, 1e300, 2.0):
        assert config._yaml(config._yaml_float(x), "test") == x
