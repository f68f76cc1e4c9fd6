"""Each level of the verdict on hand-made runs, the first step that differs, and what differs in the records."""

from __future__ import annotations

import json

import pytest
from repeated import ANSWERS, LOSSES, MANIFEST, record, run
from test_provenance import OLD

from speechlab import verdict
from speechlab.errors import InputError

ULP = 2**-52


def names(found: verdict.Verdict) -> list[str]:
    return [c.what for c in found.changes]


def test_equal_runs_are_bit_exact(tmp_path):
    found = verdict.compare(run(tmp_path), run(tmp_path))
    assert (found.level, found.first_step, found.steps, found.digests, found.changes) == ("bit-exact", None, 3, 2, ())
    assert found.text == "bit-exact: the losses of 3 steps and the weights after 2 of them are equal to the bit"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_the_first_step_that_differs_is_named_to_the_last_bit(tmp_path, step):
    losses = tuple(loss * (1 + ULP) if i >= step else loss for i, loss in enumerate(LOSSES, 1))
    found = verdict.compare(run(tmp_path), run(tmp_path, losses=losses))
    assert found.first_step == step and found.level == "same code and data"
    assert found.reason == f"loss {LOSSES[step - 1]!r} and {losses[step - 1]!r}"


def test_weights_can_differ_where_no_loss_does(tmp_path):
    found = verdict.compare(run(tmp_path), run(tmp_path, weights="others"))
    assert (found.first_step, found.reason) == (3, "the weights after it")


def test_weights_that_differ_between_checkpoints_are_noticed_there(tmp_path):
    original, again = run(tmp_path), run(tmp_path, weights="others")
    for one, digest in ((original, "a" * 64), (again, "b" * 64)):
        lines = (one.path / "events.jsonl").read_text().splitlines(keepends=True)
        events = [json.loads(line) for line in lines]
        events = [e | {"digest": digest} if (e["kind"], e.get("step")) == ("step", 1) else e for e in events]
        (one.path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    found = verdict.compare(original, again)
    assert (found.first_step, found.reason, found.digests) == (1, "the weights after it", 3)


def test_a_run_that_is_longer_or_was_interrupted(tmp_path):
    longer = run(tmp_path, losses=(*LOSSES, 0.5))
    found = verdict.compare(run(tmp_path), longer)
    assert found.first_step == 4 and found.reason == f"{longer.id} alone has it"
    # interrupted after step 3, resumed from step 2: a checkpoint more, the same steps again
    again = run(tmp_path, end="stopped")
    lines = (again.path / "events.jsonl").read_text().splitlines(keepends=True)
    (again.path / "events.jsonl").write_text("".join(lines[:5]))
    again.append({"kind": "start", "workers": 1, "resumed_from": 2, "device": "cpu", "precision": "bf16", "device_seconds": 240.0})
    again.append({"kind": "checkpoint", "step": 1, "digest": "f" * 64})
    with (again.path / "events.jsonl").open("a") as f:
        f.writelines(lines[4:])
    assert verdict.compare(run(tmp_path), again).level == "bit-exact"
    short = run(tmp_path)
    (short.path / "events.jsonl").write_text("".join(line for line in lines[:5]))
    found = verdict.compare(run(tmp_path), short)
    assert (found.first_step, found.reason) == (3, "one of the runs has no checkpoint from here on")


def test_nothing_to_compare_is_refused(tmp_path):
    empty = run(tmp_path)
    (empty.path / "events.jsonl").write_text("")
    with pytest.raises(InputError, match=f"Run {empty.id} has nothing to compare"):
        verdict.compare(run(tmp_path), empty)


def test_other_bits_with_equal_error_rates_are_statistically_equal(tmp_path):
    original, again = run(tmp_path, answers=ANSWERS), run(tmp_path, weights="x", answers=ANSWERS, threads=1, execution__threads=1)
    found = verdict.compare(original, again)
    assert found.level == "statistically equal" and found.points == 0 and (found.interval.low, found.interval.high) == (0, 0)
    assert "WER +0.00 points [+0.00, +0.00]" in found.text and names(found) == ["execution.threads"]


def test_the_margin_holds_on_both_sides(tmp_path):
    wrong = run(tmp_path, weights="x", answers=("no", "no", "no", "no no no no"))
    right = run(tmp_path, answers=ANSWERS)
    for original, again, sign in ((right, wrong, 1), (wrong, right, -1)):
        found = verdict.compare(original, again)
        assert found.level == "different" and sign * found.points > 50
    worse = run(tmp_path, weights="y", answers=(*ANSWERS[:3], "the number is 22"))
    for original, again in ((right, worse), (worse, right)):
        found = verdict.compare(original, again)
        assert found.level == "same code and data" and found.interval is not None, "four clips do not decide"
        assert verdict.compare(original, again, margin=100).level == "statistically equal"


def test_without_evaluations_the_error_rate_is_not_known(tmp_path):
    found = verdict.compare(run(tmp_path, answers=ANSWERS), run(tmp_path, weights="x"))
    assert found.level == "same code and data" and found.points is None
    assert "of the WER nothing is known" in found.text and "holds no such evaluation" in found.text


@pytest.mark.parametrize(
    ("overrides", "changed", "what"),
    [
        (["seed=2"], {}, "seeds.seed"),
        (["optim.lr=2.0e-5"], {}, "configuration.optim.lr"),
        ([], {"code__patch_sha256": "d" * 64}, "code"),
        ([], {"code__git_sha": "e" * 40}, "code"),
        ([], {"weights__sha256": "d" * 64}, "weights.sha256"),
    ],
)
def test_other_inputs_are_different_whatever_the_error_rate(tmp_path, overrides, changed, what):
    original, again = run(tmp_path, answers=ANSWERS), run(tmp_path, *overrides, weights="x", answers=ANSWERS, **changed)
    found = verdict.compare(original, again)
    assert found.level == "different" and names(found) == [what] and f"the runs differ in {what}" in found.text


@pytest.mark.parametrize(
    ("overrides", "changed", "what"),
    [
        ([], {"hardware__capability": "AVX2"}, "hardware.capability"),
        ([], {"dependencies__torch": "2.12.0"}, "dependencies.torch"),
        ([], {"execution__threads": 4, "threads": 4}, "execution.threads"),
        (["cluster.workers=0"], {}, "configuration.cluster.workers"),
        (["evaluation.resamples=300"], {}, "configuration.evaluation.resamples"),
    ],
)
def test_what_may_change_the_bits_is_named_and_makes_no_other_run(tmp_path, overrides, changed, what):
    found = verdict.compare(run(tmp_path, answers=ANSWERS), run(tmp_path, *overrides, weights="x", answers=ANSWERS, **changed))
    assert found.level == "statistically equal" and names(found) == [what]
    (change,) = found.changes
    assert change.original != change.again
    # where they changed no bit, they are still named
    equal = verdict.compare(run(tmp_path), run(tmp_path, *overrides, **changed))
    assert equal.level == "bit-exact" and names(equal) == [what]


def test_where_things_lie_makes_no_difference(tmp_path):
    overrides = ["name=other", "tracking.enabled=false", f"cluster.storage={tmp_path}", "cluster.device_seconds=240.0", "corpus.root=/x"]
    assert verdict.changes(run(tmp_path), run(tmp_path, *overrides)) == []


def test_other_clips_are_named(tmp_path):
    flipped = (*MANIFEST[:2], MANIFEST[2].replace("pcm-sha256:c", "pcm-sha256:0"), MANIFEST[3])
    found = verdict.compare(run(tmp_path), run(tmp_path, manifest=flipped, weights="x"))
    assert found.level == "different" and names(found) == ["data.clips", "data.differing"]
    assert found.changes[1].again == "1 with another audio: c"
    lines = [*MANIFEST[1:3], MANIFEST[3].replace("word", "words"), MANIFEST[0].replace('"id":"a"', '"id":"z"')]
    assert list(verdict.differing(list(MANIFEST), lines)) == ["1 missing: a", "1 new: z", "1 with another text: d"]
    assert list(verdict.differing(list(MANIFEST), list(MANIFEST))) == []


def test_installed_packages_are_compared_one_by_one(tmp_path):
    a, b = run(tmp_path, dependencies__packages="packages.txt"), run(tmp_path, dependencies__packages="packages.txt")
    (a.path / "packages.txt").write_text("numpy==2.4.6\nspeechlab==0.1.0\ntorch==2.11.0\nuv==1\n")
    (b.path / "packages.txt").write_text("attrs==26\nnumpy==2.4.7\ntorch==2.11.0\nuv==1\n")
    assert [(c.what, c.original, c.again) for c in verdict.changes(a, b)] == [
        ("dependencies.numpy", "2.4.6", "2.4.7"),
        ("dependencies.attrs", None, "26"),
    ]


def test_older_records_are_compared_by_what_they_have(tmp_path):
    old, new = run(tmp_path), run(tmp_path)
    (old.path / "provenance.json").write_text(json.dumps(OLD | {"code": {"git_sha": "a" * 40, "dirty": False}, "data": record()["data"]}))
    found = verdict.compare(old, new)
    assert found.level == "bit-exact" and names(found) == ["weights.sha256", "hardware.cpu"]
    (old.path / "provenance.json").write_text(json.dumps(OLD | {"weights": record()["weights"], "data": record()["data"]}))
    for again in (new, old):  # a changed tree that was not kept is not known to be the same, not even as itself
        other = verdict.compare(old, run(tmp_path, weights="x")) if again is new else None
        assert "code" in [c.what for c in verdict.changes(old, again)]
        assert other is None or (other.level == "different" and "not kept" in str(other.changes[0].original))
    (old.path / "provenance.json").unlink()
    assert verdict.compare(old, new).level == "bit-exact"
