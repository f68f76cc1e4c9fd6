"""A form for a config: everything wrong at once and at its place, and what nobody touched follows. In the browser: tests/test_launch.py."""

from __future__ import annotations

import pytest

from speechlab import config, fields
from speechlab.errors import InputError
from speechlab.form import FIRST, LONGEST, Form


@pytest.fixture
def form():
    return Form(config.home() / "configs" / "quickstart.yaml")


def opened(form: Form) -> Form:
    for card in form._cards.values():
        card.collapsed = False
    return form


def test_it_begins_with_the_config_as_it_is(form):
    assert form.experiment == config.load("configs/quickstart.yaml")
    assert (form.overrides, form.problems) == ([], {})
    assert set(form._widgets) == set(FIRST), "the rest is made when it is opened"
    opened(form)
    assert set(form._widgets) == {*fields.known(), *(g.name for g in fields.groups() if g.optional)}, "each has one widget"
    assert (form.overrides, form.problems) == ([], {}), "and to look changes nothing"


def test_all_problems_are_told_at_once_each_at_its_field(form):
    form._widgets["training.epochs"].value = "0"
    form.enter("context.margin_min", "9")
    form.enter("augment.noise", True)
    form.enter("augment.noise.low", "loud")
    assert form.experiment is None
    assert set(form.problems) == {"training.epochs", "context", "augment.noise.low"}
    assert "got 0 (int)" in form._notes["training.epochs"].value
    assert not form._cards["context"].collapsed, "where something is wrong it is opened"
    assert "margin_min 9 above" in form._notes["context"].value or "margin_max" in form._notes["context"].value
    assert "alert" not in form._notes["optim.lr"].value
    for name in ("training.epochs", "context.margin_min", "augment.noise.low"):
        form.enter(name, fields.known()[name].shown(fields.values(config.load("configs/quickstart.yaml"))[name]))
    assert (form.problems, form.overrides) == ({}, ["augment.noise={}"])
    form.enter("augment.noise", False)
    assert form.experiment == config.load("configs/quickstart.yaml")


def test_what_concerns_several_sections_is_told_for_all(form):
    form.enter("cluster.workers", "3")
    assert set(form.problems) == {""}
    assert "multiple of workers" in form.problems[""]


def test_what_nobody_touched_follows_and_what_was_touched_stays(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("name: x\nquestion: does it follow?\n")
    form = opened(Form(path))
    form.enter("model.family", "conformer")
    assert form.overrides == ["model.family=conformer"]
    assert form._widgets["model.weights"].value == "" and form._widgets["context.margin_max"].value == "0.0"
    form.enter("model.weights", "tiny.en")  # what the file had, and has no more
    assert form.overrides == ["model.family=conformer", "model.weights=tiny.en"]
    form.enter("model.family", "whisper")
    assert form.overrides == [] or form.overrides == ["model.weights=tiny.en"]
    assert form._widgets["context.margin_max"].value == "2.0"


def test_sections_that_can_be_left_out_are_ticked_in(form):
    opened(form)
    assert not form._parts["model.lora"].visible
    form._widgets["model.lora"].value = ["model.lora"]
    assert form._parts["model.lora"].visible
    form._widgets["model.lora.rank"].value = "8"
    assert form.experiment.model.lora.rank == 8
    assert form._cards["model"].title == "model · 2 changed"
    form._widgets["model.lora"].value = []
    assert form.overrides == [] and form.experiment.model.lora is None


def test_what_is_too_long_is_not_even_looked_at(form):
    form.enter("corpus.root", "x" * (LONGEST + 1))
    assert "4,001 characters" in form.problems["corpus.root"]
    assert form.experiment is None and form.overrides == []
    form.enter("corpus.root", "/data")
    assert form.problems == {} and form.overrides == ["corpus.root=/data"]


def test_a_config_that_cannot_be_used_is_an_input_error(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(InputError):
        Form(tmp_path / "bad.yaml")
