"""Sweeps: drawn before they cost anything, trained by Ray Tune for real, read from their runs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlab import config, sweeps
from speechlab.errors import InputError

SPACE = ("optim.lr=loguniform(1e-5, 1e-3)", "training.micro_batches=choice(2, 4)")


def experiment(**sections):
    return config.validate({"name": "s", "question": "?", "training": {"batch_seconds": 60.0}, **sections}, "test")


def test_a_space_is_read():
    lr, parts = sweeps.space(SPACE)
    assert (lr.key, lr.kind, lr.values) == ("optim.lr", "loguniform", (1e-5, 1e-3))
    assert (parts.key, parts.kind, parts.values) == ("training.micro_batches", "choice", (2, 4))
    (freeze,) = sweeps.space(["model.freeze=choice(nothing, encoder)"])
    assert freeze.values == ("nothing", "encoder")
    assert sweeps.space(["optim.lr=choice(1e-3, 2.5E-4, 0.1)"])[0].values == (1e-3, 2.5e-4, 0.1)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "search space is empty"),
        (["optim.lr"], "section.key=kind"),
        (["optim.lr=lognormal(1, 2)"], 'did you mean "loguniform"'),
        (["optim.lr=uniform(1)"], "do not suit uniform"),
        (["optim.lr=uniform(2, 1)"], "low < high"),
        (["optim.lr=loguniform(0, 1)"], "0 < low < high"),
        (["optim.lr=uniform(a, b)"], "no numbers"),
        (["optim.lr=uniform(.nan, 1)"], "cannot be used"),
        (["training.epochs=randint(1, 2.5)"], "whole numbers"),
        (["training.epochs=choice()"], "do not suit choice"),
        (["training.epochs=choice(1)", "training.epochs=choice(2)"], "stands twice"),
        (["optim.lr=choice(!!python/name:os.system)"], "cannot be read"),
    ],
)
def test_a_space_that_cannot_be_used_is_refused(texts, said):
    with pytest.raises(InputError, match=r".*") as e:
        sweeps.space(texts)
    assert said in str(e.value)


@given(st.integers(0, 2**31 - 1), st.floats(1e-6, 1e-2), st.floats(1.1, 1e3))
def test_draws_lie_in_their_limits_and_depend_on_the_seed_alone(seed, low, factor):
    import numpy as np

    found = [sweeps.Dimension("k", kind, (low, low * factor)) for kind in ("uniform", "loguniform")]
    found += [sweeps.Dimension("k", "randint", (3, 5)), sweeps.Dimension("k", "choice", ("a", "b"))]
    draws = [[d.draw(np.random.default_rng(seed)) for d in found] for _ in range(2)]
    assert draws[0] == draws[1]
    assert all(low * 0.999 <= v <= low * factor * 1.001 for v in draws[0][:2])  # four digits are kept
    assert draws[0][2] in (3, 4, 5) and draws[0][3] in ("a", "b")


def test_a_sweep_is_made_of_runs_before_anything_is_trained(tmp_path):
    sweep = sweeps.Sweep.create(experiment(), sweeps.space(SPACE), 6, tmp_path)
    again = sweeps.Sweep.create(experiment(name="other"), sweeps.space(SPACE), 6, tmp_path)
    table = sweep.table()
    assert list(table["optim.lr"]) == list(again.table()["optim.lr"]), "drawn from the experiment's seed"
    assert len(set(table["optim.lr"])) == 6
    assert set(table.state) == {"new"}
    for run, lr, parts in zip(sweep.runs, table["optim.lr"], table["training.micro_batches"], strict=True):
        assert (run.config.optim.lr, run.config.training.micro_batches) == (lr, parts)
        assert run.config.cluster.workers == 0
    assert sweep.keep_best() is None
    assert len(sweeps.Sweep.create(experiment(name="few"), sweeps.space(["training.epochs=choice(1, 2)"]), 20, tmp_path).runs) == 2


@pytest.mark.parametrize("text", ["optim.lr=uniform(2, 3)", "optim.lrs=uniform(0.1, 0.2)", "nothing.here=choice(1)"])
def test_a_value_that_the_config_refuses_is_said_before_training(tmp_path, text):
    with pytest.raises(InputError, match="trial 1"):
        sweeps.Sweep.create(experiment(), sweeps.space([text]), 2, tmp_path)
    assert not list(tmp_path.iterdir())


def fill(sweep):
    """Events as trials leave them: three that were validated, one that failed at once."""
    for number, run in enumerate(sweep.runs):
        if number == 3:
            run.append({"kind": "failure", "error": "<script>alert(1)</script>"})
            continue
        run.append({"kind": "start", "resumed_from": None, "steps": 2})
        for epoch in range(3 - number):
            wer = 0.5 - 0.1 * epoch + 0.02 * number
            run.append({"kind": "step", "step": epoch + 1, "step_seconds": 2.0, "epoch": epoch})
            run.append({"kind": "validation", "step": epoch + 1, "epoch": epoch, "wer": wer, "cer": 0.1, "clips": 3})
        run.append({"kind": "end", "step": 3, "seconds": 1.0, "best": None})


def test_the_best_is_kept_as_a_config_that_loads(tmp_path):
    sweep = sweeps.Sweep.create(experiment(), sweeps.space(SPACE), 4, tmp_path)
    fill(sweep)
    table = sweep.table()
    assert list(table.epochs) == [3, 2, 1, 0]
    assert table.best.iloc[0] == pytest.approx(0.3) and math.isnan(table.best.iloc[3])
    path = sweep.keep_best()
    best = config.load(path)
    assert best.optim.lr == table["optim.lr"].iloc[0]
    assert best.cluster.workers == experiment().cluster.workers, "what made trials trials is not kept"
    assert "validation WER 30.00 %" in path.read_text()
