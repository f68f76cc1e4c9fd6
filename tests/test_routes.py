"""Which model answers a key: by property; and what a config of a server may say."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import routes
from speechlab.errors import InputError
from speechlab.routes import Offer, Route, ServeConfig

WEIGHTS = st.lists(st.floats(0.5, 100.0), min_size=2, max_size=5)
KEYS = [f"caller {i}" for i in range(2000)]


def route(weights, path="/transcribe"):
    return Route(path=path, models=tuple(Offer(name=f"m{i}", weight=w) for i, w in enumerate(weights)))


@given(WEIGHTS)
@settings(deadline=None, max_examples=25)
def test_weights_hold_within_binomial_bounds(weights):
    answered = [route(weights).answers(key) for key in KEYS]
    for i, weight in enumerate(weights):
        p = weight / sum(weights)
        bound = 5 * math.sqrt(len(KEYS) * p * (1 - p))  # five standard errors: one in a million
        assert abs(answered.count(f"m{i}") - p * len(KEYS)) <= bound + 1


@given(WEIGHTS, st.integers(0, 4), st.floats(1.01, 20.0), st.lists(st.text(max_size=20), min_size=1, max_size=40))
@settings(deadline=None, max_examples=100)
def test_a_key_stays_and_a_weight_that_is_raised_only_takes(weights, which, factor, keys):
    which %= len(weights)
    raised = [w * factor if i == which else w for i, w in enumerate(weights)]
    before, after, again = route(weights), route(raised), route(weights)
    for key in keys:
        assert before.answers(key) == again.answers(key)
        assert after.answers(key) in (before.answers(key), f"m{which}")


def test_keys_do_move_and_routes_draw_apart():
    before, after = route([95, 5]), route([50, 50])
    moved = [key for key in KEYS if before.answers(key) != after.answers(key)]
    assert len(moved) > 600 and {after.answers(key) for key in moved} == {"m1"}
    other = route([50, 50], "/other")
    agree = sum(after.answers(key) == other.answers(key) for key in KEYS) / len(KEYS)
    assert 0.4 < agree < 0.6, "who gets the candidate on one route is not whoever gets it on the other"

    def in_intervals(weights, key):  # the negative control: intervals on a line move keys between the others
        at, low = routes._share("/", "", key) * sum(weights), 0.0
        for i, weight in enumerate(weights):
            low += weight
            if at < low:
                return i
        raise AssertionError

    assert any(sorted(in_intervals(weights, key) for weights in ([40, 40, 20], [40, 40, 60])) == [0, 1] for key in KEYS)


def config(tmp_path, text):
    (tmp_path / "serve.yaml").write_text(text)
    return routes.load(tmp_path / "serve.yaml")


ONE = "routes: [{models: [{name: tiny.en}]}]\n"


def test_a_config_is_read_and_frozen(tmp_path, root):
    found = config(tmp_path, ONE)
    assert found.own and found.address == "127.0.0.1" and found.routes[0].path == "/transcribe" and not found.text
    with pytest.raises(ValueError, match="frozen"):
        found.port = 1
    assert found.log_path.parts[-2:] == ("serving", "requests.jsonl") and config(tmp_path, ONE + "log: null\n").log_path is None
    for path in (root / "configs" / "serving").glob("*.yaml"):
        assert len(routes.load(path).routes[0].models) == 2
        assert re.search(r"#\s+command:.*\n#\s+cost:.*\n#\s+expected:", path.read_text())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port: 8000\n", "routes: got nothing"),
        ("routes: []\n", "at least 1"),
        ("routes: [{models: [{name: a, wieght: 5}]}]\n", r'routes.0.models.0.wieght.*did you mean "weight"'),
        ("routes: [{models: [{name: a, weight: 0}]}]\n", "greater than 0"),
        ("routes: [{models: [{name: a, weight: '5'}]}]\n", "write 5.0 without quotes"),
        ("routes: [{models: [{name: a}, {name: a}]}]\n", "a twice"),
        ("routes: [{path: /x, models: [{name: a}]}, {path: /x, models: [{name: b}]}]\n", "/x twice"),
        ("routes: [{path: /health, models: [{name: a}]}]\n", "another than /health"),
        ("routes: [{path: ../x, models: [{name: a}]}]\n", "match pattern"),
        (ONE + "replica: 2\n", 'did you mean "replicas"'),
        (ONE + "registry: postgresql://u:secret@h/db\n", "password"),
    ],
)
def test_what_a_config_may_not_say(tmp_path, text, said):
    with pytest.raises(InputError) as error:
        config(tmp_path, text)
    assert re.search(said, str(error.value)) and "secret" not in str(error.value)


def test_other_machines_need_a_token(monkeypatch):
    own, all_ = (ServeConfig(routes=(route([1]),), address=address) for address in ("::1", "0.0.0.0"))
    monkeypatch.delenv(routes.TOKEN, raising=False)
    assert routes.token(own) == ""
    for address in ("0.0.0.0", "example.org", "10.0.0.1"):
        with pytest.raises(InputError, match=routes.TOKEN):
            routes.token(ServeConfig(routes=(route([1]),), address=address))
    monkeypatch.setenv(routes.TOKEN, "short")
    with pytest.raises(InputError, match="too short"):
        routes.token(own)
    monkeypatch.setenv(routes.TOKEN, "long enough to be one")
    assert routes.token(all_) == routes.token(own) == "long enough to be one"
