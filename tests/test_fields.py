"""The config as a form shows it: nothing of it is missing, and what is entered becomes what the shell takes."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import config, fields
from speechlab.errors import InputError

CONFIGS = sorted((config.home() / "configs").glob("*.yaml"))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def field(name: str) -> fields.Field:
    return fields.known()[name]


def test_every_value_of_the_config_has_a_field():
    everything = config.Experiment(
        name="x", question="?", augment=config.AugmentConfig(**{k: {} for k in config.AugmentConfig.model_fields}),
        model=config.ModelConfig(lora=config.LoraConfig()), evaluation=config.EvaluationConfig(search=config.SearchConfig()),
    )  # fmt: skip
    assert set(dict(config.leaves(everything.model_dump()))) == set(fields.known())
    optional = {g.name for g in fields.groups() if g.optional}
    assert optional == {f"augment.{k}" for k in config.AugmentConfig.model_fields} | {"model.lora", "evaluation.search"}


def test_help_bounds_and_choices_are_the_config_s_own():
    assert field("training.epochs") == fields.Field("training.epochs", "number", bounds="whole, 1 or more", default=3)
    assert field("optim.lr").bounds == "over 0, at most 1"
    assert field("corpus.check.min_level").bounds == "-120 to 0"
    assert field("training.ema").optional and field("training.ema").bounds == "over 0, under 1"
    assert field("training.precision").choices == ("fp32", "bf16", "fp16")
    assert field("training.gradient_checkpointing").kind == "switch"
    assert field("augment.codec.kinds").kind == "choices"
    assert field("augment.speed.factors").kind == "list" and field("augment.speed.factors").bounds == "0.5 to 2"
    assert field("corpus.limit").help == "at most so many clips a split, for smoke runs"
    assert next(g.help for g in fields.groups() if g.name == "context").startswith("How much silence the encoder hears")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_what_is_shown_is_read_back(path):
    known = fields.values(config.load(path))
    for name, f in fields.known().items():
        assert f.read(f.shown(known[name])) == known[name], name
    assert fields.overrides(known, {}) == []


@pytest.mark.parametrize(
    ("name", "entered", "value"),
    [
        ("optim.lr", "1e-4", 1e-4),
        ("optim.lr", " 0.1 ", 0.1),
        ("training.epochs", "5", 5),
        ("training.epochs", "many", "many"),
        ("training.epochs", "", None),
        ("training.ema", "", None),
        ("corpus.root", "", None),
        ("corpus.name", "", ""),
        ("model.shape.size", "7", "7"),
        ("model.weights", "null", "null"),
        ("training.gradient_checkpointing", True, True),
        ("augment.speed.factors", "0.9, 1,1.1,", [0.9, 1, 1.1]),
        ("evaluation.conditions", "clean, white-10db", ["clean", "white-10db"]),
        ("corpus.check.set_aside", ["noisy"], ["noisy"]),
    ],
)
def test_what_is_entered(name, entered, value):
    found = field(name).read(entered)
    assert found == value and type(found) is type(value)


CHANGES = st.dictionaries(
    st.sampled_from(sorted(fields.known()) + [g.name for g in fields.groups() if g.optional]),
    st.one_of(
        TEXTS,
        st.integers(-5, 50).map(str),
        st.floats(allow_nan=False).map(str),
        st.sampled_from(["true", "null", "[1", "a: b", "'", "- x"]),
    ),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(CHANGES)
def test_a_form_and_the_shell_give_the_same(entered):
    """Whatever is entered: the same experiment as from the command that is shown, or the same complaint, and never another error."""
    path = CONFIGS[-1]
    base = fields.values(config.load(path))
    changes = {name: field(name).read(text) if name in fields.known() else bool(text) for name, text in entered.items()}
    items = fields.overrides(base, changes)
    words = shlex.split(fields.listed(items))
    assert words[1::2] == items and set(words[::2]) <= {"--set"}
    try:
        found = fields.values(config.load(path, items))
    except InputError as e:
        places = {"", *fields.known(), *(g.name for g in fields.groups())}
        found = None
        strange = [name for name in e.problems if fields.nearest(name) not in places]
    if found is None:
        assert strange == []
    else:
        off = [g.name for g in fields.groups() if g.optional and not found[g.name]]
        for name, value in changes.items():
            if not any(name.startswith(f"{group}.") for group in off):
                assert found[name] == value, name


@pytest.mark.parametrize(
    ("changes", "items"),
    [
        ({"model.lora": True}, ["model.lora={}"]),
        ({"model.lora": True, "model.lora.rank": 8}, ["model.lora.rank=8"]),
        ({"model.lora": False, "model.lora.rank": 8}, []),
        ({"augment.speed": True, "optim.lr": 1e-4}, ["augment.speed={}", "optim.lr=0.0001"]),
        ({"corpus.root": "/data/it's"}, ["corpus.root=/data/it's"]),
    ],
)
def test_sections_that_can_be_left_out(changes, items):
    base = fields.values(config.load("configs/quickstart.yaml"))
    assert fields.overrides(base, changes) == items
    config.load("configs/quickstart.yaml", items)
    there = fields.values(config.load("configs/quickstart.yaml", ["model.lora={}"]))
    assert fields.overrides(there, {"model.lora": False, "model.lora.rank": 8}) == ["model.lora=null"]


def test_a_problem_is_shown_at_the_nearest_place():
    assert fields.nearest("augment.speed.factors.0") == "augment.speed.factors"
    assert fields.nearest("training.nothing") == "training"
    assert fields.nearest("nothing") == ""
