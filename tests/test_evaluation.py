"""Evaluations of real runs over real clips, and of hand-made ones whose counts are known."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest

from speechlab import audio, checkpoints, config, corpora, decoding, evaluation, models, optim, utterances
from speechlab.errors import InputError
from speechlab.evaluation import Evaluation
from speechlab.runs import Run
from speechlab.text import normaliser


def experiment(weights: str = "tiny.en", **evaluated: object) -> config.Experiment:
    values = {
        "name": "test",
        "question": "What does it hear?",
        "corpus": {"limit": 3},
        "model": {"weights": weights},
        "training": {"precision": "fp32"},
        "cluster": {"device": "cpu"},
        "evaluation": {"resamples": 100, "batch_size": 2, **evaluated},
    }
    return config.validate(values, "test")


@pytest.fixture
def run(small_whisper, tmp_path) -> Run:
    return Run.create(experiment(str(small_whisper)), tmp_path)


@pytest.fixture
def trained(run, small_whisper) -> Run:
    """A run with a checkpoint, whose weights are a little off the first ones."""
    model = models.load("whisper", small_whisper, "en")
    model.net.model.decoder.layer_norm.bias.data.mul_(1.01)
    checkpoints.save(run.path / "checkpoints", model, optim.adamw(model, run.config.optim), {"step": 1, "epoch": 0, "wer": 0.5})
    return run


def made(system: str, context: str, hypotheses: list[str], condition: str = "clean", **more: object) -> Evaluation:
    """An evaluation of four clips by two speakers with given answers."""
    references = ["Please press one.", "Thank you!", "Goodbye.", "The number is twenty one."]
    rows = pd.DataFrame(
        {
            "id": list("abcd"),
            "speaker": ["x", "x", "y", "y"],
            "duration": [1.5, 0.8, 0.6, 2.1],
            "reference": references,
            "hypothesis": hypotheses,
            "ended": True,
            "context": 30.0 if context == "full" else 2.6,
            "seconds": 0.25,
        }
    )
    values = {"rtf": 0.2, "weights_sha256": "0" * 64, "normaliser": normaliser("english").identity, "wer": 0.5, "cer": 0.25, "fallbacks": 0}
    return Evaluation(**{"system": system, "condition": condition, "context": context, **values, **more}, rows=rows)


PERFECT = ["please press one", "thank you", "Goodbye", "the number is 21"]
# a substitution, a deletion, an insertion
BEFORE = made("pretrained", "full", ["Please press two.", "Thank", "Goodbye now.", "The number is 21."])
AFTER = made("finetuned", "short", [*PERFECT[:2], "", "The number is 21."])  # a deletion


# --- conditions ---


def test_conditions_are_clean_and_noise_at_the_snr():
    assert evaluation.conditions(experiment()) == ("clean", "noise-10db")
    assert evaluation.conditions(experiment(snr=-2.5)) == ("clean", "noise--2.5db")
    assert evaluation.alteration("clean", 1) is None


@pytest.mark.parametrize("snr", [10.0, 0.0, -2.5, 60.0])
def test_noise_is_at_its_snr_over_active_speech(prompts, snr):
    alter = evaluation.alteration(evaluation.conditions(experiment(snr=snr))[1], seed=1)
    for cut in list(prompts.cuts["test"])[::40]:
        wave = corpora.load_audio(cut)
        noise = alter(cut.id, wave).astype(np.float64) - wave
        assert 10 * math.log10(audio.active_power(wave) / np.mean(noise**2)) == pytest.approx(snr, abs=0.01)


def test_noise_belongs_to_seed_condition_and_clip():
    wave = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 10
    heard = {
        (condition, seed, clip): evaluation.alteration(condition, seed)(clip, wave)
        for condition in ("noise-10db", "noise-9db")
        for seed in (1, 2)
        for clip in ("a", "b")
    }
    for (condition, seed, clip), noisy in heard.items():
        assert np.array_equal(evaluation.alteration(condition, seed)(clip, wave), noisy)
    # other noise, not the same noise louder
    shapes = [(noisy - wave) / np.std(noisy - wave) for noisy in heard.values()]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.1 for i, a in enumerate(shapes) for b in shapes[:i])


def test_an_unknown_condition_lists_the_known():
    with pytest.raises(InputError, match=r'Unknown condition "noise-9db"(.|\n)*noise-10db'):
        evaluation.evaluate(experiment(), [], system="x", folder="", weights_sha256="", condition="noise-9db", context="short")


# --- tables ---


def test_an_evaluation_reads_back_as_saved(run):
    answers = ['é,"quoted"', "</script>\n", "", "你好"]
    saved = made("finetuned", "short", answers, rtf=0.1234567890123)
    evaluation.save(run, saved)
    evaluation.save(run, BEFORE)
    before, after = sorted(evaluation.load(run), key=lambda e: e.name, reverse=True)
    assert (after, before) == (saved, BEFORE)
    pd.testing.assert_frame_equal(after.rows, saved.rows, check_dtype=False)
    assert list(after.rows.hypothesis) == answers
    assert after.name == "finetuned--clean--short"
    assert (after.label, before.label) == ("finetuned, short context", "pretrained, 30 s context")
    assert {p.name for p in (run.path / "evaluations").iterdir()} == {
        f"{e.name}.{x}" for e in (saved, BEFORE) for x in ("json", "parquet", "ref.trn", "hyp.trn")
    }
    heard = utterances.read(run.path / "evaluations" / "pretrained--clean--full.hyp.trn", "hypothesis")
    assert heard.texts["x-a"] == "please press 2" and set(heard.speakers.values()) == {"x", "y"}


def test_an_evaluation_is_found_by_name(run, monkeypatch):
    monkeypatch.setattr(evaluation, "find", lambda name: run)
    with pytest.raises(InputError, match="holds no such evaluation") as e:
        evaluation.kept("latest")
    assert "speechlab evaluate" in str(e.value)
    for one in (BEFORE, AFTER, made("finetuned", "full", PERFECT), made("finetuned", "short", PERFECT, condition="noise-10db")):
        evaluation.save(run, one)
    assert evaluation.kept("latest").name == "finetuned--clean--short.parquet"
    assert evaluation.kept("latest:pretrained--clean--full").name == "pretrained--clean--full.parquet"
    with pytest.raises(InputError, match='did you mean "finetuned--clean--full"'):
        evaluation.kept("latest:finetuned--clean--ful")


def test_summary_counts_what_was_made():
    table = evaluation.summary([BEFORE, AFTER], experiment())
    before, after = table.to_dict("records")
    # normalised: please press one | thank you | goodbye | the number is 21
    assert (before["words"], after["words"]) == (10, 10)
    assert (before["substitutions"], before["deletions"], before["insertions"]) == (1, 1, 1)
    assert (after["substitutions"], after["deletions"], after["insertions"]) == (0, 1, 0)
    assert (before["wer"], after["wer"]) == (0.3, 0.1)
    # raw, of 11 words: two. | - | Goodbye now. | 21. - and then please one | thank you | - | 21. -
    assert (before["wer_raw"], after["wer_raw"]) == (6 / 11, 7 / 11)
    for row in (before, after):
        assert row["low"] <= row["wer"] <= row["high"]
        assert (row["clips"], row["rtf"], row["fallbacks"]) == (4, 0.2, 0)
        assert row["wer_raw"] > row["wer"]
        assert row["warning"]  # two speakers are too few to speak of others
    assert (before["label"], after["label"]) == (BEFORE.label, AFTER.label)
    again = evaluation.summary([BEFORE, AFTER], experiment())
    pd.testing.assert_frame_equal(table, again)  # the interval has its seed


def test_differences_are_paired_and_in_points():
    noisy = [dataclasses.replace(e, condition="noise-10db") for e in (AFTER, BEFORE)]
    table = evaluation.differences([BEFORE, AFTER, made("finetuned", "full", PERFECT), *noisy], experiment())
    assert list(zip(table.condition, table.context, strict=True)) == [("clean", "short"), ("clean", "full"), ("noise-10db", "short")]
    assert table.points.tolist() == pytest.approx([-20.0, -30.0, -20.0])
    assert (table.low <= table.points).all()
    assert (table.points <= table.high).all()
    assert table.p.between(0, 1).all()
    assert evaluation.differences([AFTER], experiment()).empty  # nothing to compare with
    assert evaluation.differences([], experiment()).empty


def test_side_by_side_shows_the_wrong_ones_worst_first():
    table, named = evaluation.side_by_side([BEFORE, AFTER], "english")
    assert named == {"before": BEFORE.label, "after": AFTER.label}
    assert list(
        table[["id", "duration", "reference", "before", "after", "errors_before", "errors_after"]].itertuples(index=False, name=None)
    ) == [
        ("c", 0.6, "goodbye", "goodbye now", "", 1, 1),
        ("a", 1.5, "please press one", "please press 2", "please press one", 1, 0),
        ("b", 0.8, "thank you", "thank", "thank you", 1, 0),
    ]
    perfect = made("finetuned", "short", PERFECT)
    assert evaluation.side_by_side([made("pretrained", "full", PERFECT), perfect], "english")[0].empty


def test_a_model_from_scratch_stands_alone():
    alone = dataclasses.replace(AFTER, system="trained", context="clip")
    table, named = evaluation.side_by_side([alone], "english")
    assert named == {"after": "trained"}
    assert list(table.id) == ["c"]
    assert "before" not in table


# --- runs ---


@pytest.mark.slow
def test_a_run_is_measured_once(trained, monkeypatch):
    measured = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *a, **how: measured.append(how["context"]) or decode(*a, **how))
    first = evaluation.evaluate_run(trained, progress=False)
    assert [e.name for e in first] == [
        "pretrained--clean--full",
        "pretrained--noise-10db--full",
        "finetuned--clean--short",
        "finetuned--clean--full",
        "finetuned--noise-10db--short",
    ]
    assert measured == [c for e in first for c in [e.context] * 2]  # a warm-up each
    for e in first:
        assert list(e.rows.id) == sorted(c.id for c in corpora.configured(trained.config.corpus).cuts["test"])
        assert e.rows.duration.sum() == pytest.approx(corpora.configured(trained.config.corpus).seconds["test"])
        assert e.rtf == pytest.approx(e.rows.seconds.sum() / e.rows.duration.sum())
        assert e.rtf > 0
        assert e.wer == e.scores("english").wer
        assert e.rows[["substitutions", "deletions", "insertions"]].sum().sum() / e.rows.words.sum() == e.wer
        assert (e.rows.context == 30).all() or e.context == "short"
        assert e.weights_sha256 == evaluation.systems(trained)[e.system][1]

    measured.clear()
    again = evaluation.evaluate_run(trained, progress=False)
    assert not measured
    assert again == first
    assert all(a.rows.equals(b.rows) for a, b in zip(first, again, strict=True))

    # one that is of other weights is measured again, alone
    meta = trained.path / "evaluations" / "finetuned--clean--short.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"weights_sha256": "0" * 64}))
    evaluation.evaluate_run(trained, progress=False)
    assert measured == ["short", "short"]


def test_a_run_that_is_not_trained_yet_has_only_the_pretrained_system(run):
    assert set(evaluation.systems(run)) == {"pretrained"}


def test_a_damaged_best_checkpoint_is_not_evaluated(trained):
    best = checkpoints.existing(trained.path / "checkpoints")[0].path / "model.safetensors"
    data = bytearray(best.read_bytes())
    data[-1] ^= 1
    best.write_bytes(data)
    with pytest.raises(InputError, match=rf"best checkpoint of run {trained.id} is damaged(.|\n)*model.safetensors(.|\n)*train again"):
        evaluation.evaluate_run(trained, progress=False)
    assert not list((trained.path / "evaluations").iterdir())


def test_another_corpus_than_the_one_trained_on_is_refused(trained):
    (trained.path / "provenance.json").write_text(json.dumps({"data": {"manifest_sha256": "f" * 64}}))
    with pytest.raises(InputError, match=r"not the one this run was trained on(.|\n)*expected: *manifest ffffffffffff(.|\n)*splits"):
        evaluation.evaluate_run(trained, progress=False)
