"""Evaluations of real runs over real clips, and of hand-made ones whose counts are known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pandas as pd
import pytest
from counts import sums
from evaluated import AFTER, BEFORE, PERFECT, experiment, made

from speechlab import checkpoints, conditions, corpora, decoding, evaluation, models, optim, utterances
from speechlab.config import ModelConfig, ShapeConfig
from speechlab.errors import InputError
from speechlab.evaluation import System
from speechlab.models import ctc
from speechlab.runs import Run
from speechlab.text import normaliser


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


@pytest.fixture(scope="module")
def small(small_whisper) -> System:
    return System("small", "whisper", str(small_whisper), "0" * 64, "en")


@pytest.fixture(scope="module")
def real(tiny_en) -> System:
    return System("tiny.en", "whisper", str(tiny_en), "1" * 64, "en")


def some(prompts, count: int) -> list:
    """Test clips from short to long."""
    cuts = sorted(prompts.cuts["test"], key=lambda c: (c.duration, c.id))[:120]
    return cuts[:: len(cuts) // count][:count]


# --- decoding ---


def test_batches_hold_clips_of_like_length_and_so_many_seconds(prompts):
    cuts = list(prompts.cuts["test"])
    planned = decoding.plan(cuts, 60.0)
    assert sorted(c.id for batch in planned for c in batch) == sorted(c.id for c in cuts)
    ordered = [c.duration for batch in planned for c in batch]
    assert ordered == sorted(ordered)
    assert all(len(batch) * batch[-1].duration <= 60 or len(batch) == 1 for batch in planned)
    assert all((len(a) + 1) * b[0].duration > 60 or len(a) == decoding.MOST for a, b in itertools.pairwise(planned))
    assert [len(batch) for batch in decoding.plan(cuts, 0)] == [1] * len(cuts)
    assert decoding.plan([], 60.0) == []


@pytest.mark.slow
def test_answers_depend_neither_on_batches_nor_on_order(real, prompts):
    cuts = some(prompts, 24)
    model = models.load("whisper", real.folder, "en")

    def texts(cuts, seconds) -> dict[str, str]:
        found = [d for part in decoding.decode(model, cuts, seconds=seconds, precision="fp32") for d in part]
        assert sorted(d.id for d in found) == sorted(c.id for c in cuts)
        return {d.id: d.hypothesis for d in found}

    alone = texts(cuts, 0)
    assert texts(cuts, 240) == texts(cuts[::-1], 20) == alone
    assert texts(cuts[::3], 240) == {c.id: alone[c.id] for c in cuts[::3]}
    assert len(set(alone.values())) > 20


def test_a_broken_clip_spoils_no_other(small, prompts, tmp_path):
    cuts = some(prompts, 4)
    broken = cuts[1]
    copy = tmp_path / "broken.flac"
    copy.write_bytes(b"no sound")
    bad = type(broken).from_dict(broken.to_dict())
    bad.recording.sources[0].source = str(copy)
    heard = conditions.Heard(conditions.condition("clean"), [cuts[0], bad, *cuts[2:]], "x")
    found = evaluation.evaluate(small, heard, experiment().evaluation, precision="fp32")
    assert list(found.broken) == [bad.id] and "broken.flac" in found.broken[bad.id]
    assert list(found.rows.id) == sorted(c.id for c in cuts if c.id != bad.id)
    whole = evaluation.evaluate(small, dataclasses.replace(heard, cuts=cuts), experiment().evaluation, precision="fp32")
    assert not whole.broken
    others = whole.rows[whole.rows.id != bad.id].reset_index(drop=True)
    assert list(others.hypothesis) == list(found.rows.hypothesis)
    with pytest.raises(InputError, match=r"Not one clip could be decoded(.|\n)*broken.flac"):
        evaluation.evaluate(small, dataclasses.replace(heard, cuts=[bad]), experiment().evaluation, precision="fp32")


def test_what_is_measured_is_told(small, prompts):
    cuts = some(prompts, 5)
    heard = conditions.prepare("clean", cuts, 1)
    counted: list[int] = []
    found = evaluation.evaluate(small, heard, experiment().evaluation, precision="fp32", latencies=True, progress=counted.append)
    assert sum(counted) == 10  # together, and one by one
    rows = found.rows
    assert found.heard_sha256 == heard.sha256 and found.weights_sha256 == "0" * 64
    assert found.how == {"device": "cpu", "precision": "fp32", "search": "greedy"}
    assert found.rtf == pytest.approx(rows.seconds.sum() / rows.duration.sum()) and found.rtfx == pytest.approx(1 / found.rtf)
    assert (rows.latency > 0).all() and found.timed.clips == 5
    assert [len(c) for c in rows.confidences] == [len(t.split()) for t in rows.hypothesis]
    assert all(0 < c <= 1 for row in rows.confidences for c in row)
    assert found.memory_bytes > 0
    assert found.wer == found.scores("english").wer
    assert found.context == "silence" and (rows.context <= rows.duration + 0.55).all()
    with pytest.raises(InputError, match=r'no such context(.|\n)*did you mean "short"'):
        evaluation.evaluate(small, heard, experiment().evaluation, context="shrt")


def test_without_speech_every_word_is_invented(small, prompts):
    heard = conditions.prepare("silence", some(prompts, 3), 1)
    found = evaluation.evaluate(small, heard, experiment().evaluation, precision="fp32")
    assert math.isnan(found.wer) and found.rows.words.sum() == 0
    assert found.rows.insertions.sum() == sum(len(normaliser("english").words(t)) for t in found.rows.hypothesis)


@pytest.mark.slow
def test_a_ctc_model_is_searched_as_the_config_says(prompts, tmp_path):
    texts = [c.supervisions[0].text for c in prompts.cuts["train"]]
    config = ModelConfig(family="conformer", shape=ShapeConfig(dim=32, layers=1, heads=2, kernel=15))
    models.family_class("conformer").create(config, None, "en", texts, tmp_path)
    system = System("conformer", "conformer", str(tmp_path), "2" * 64, "en")
    heard = conditions.prepare("clean", some(prompts, 6), 1)
    greedy = evaluation.evaluate(system, heard, experiment().evaluation, precision="fp32")
    settings = experiment(search={"beam": 8, "lm_weight": 3.0}).evaluation
    searched = evaluation.evaluate(system, heard, settings, precision="fp32", texts=texts)
    assert greedy.how["search"] == "greedy" and greedy.context == "clip"
    assert searched.how["search"].startswith("beam 8, lm_weight 3, word_score 0, 3-grams of words, ")
    known = {word for text in texts for word in ctc.spoken(text).split()}
    assert all(word in known for text in searched.rows.hypothesis for word in text.split())
    assert list(searched.rows.hypothesis) != list(greedy.rows.hypothesis)
    other = experiment(search={"beam": 8, "lm_weight": 2.0}).evaluation
    assert evaluation.evaluate(system, heard, other, precision="fp32", texts=texts).how != searched.how


# --- tables ---


def test_an_evaluation_reads_back_as_saved(tmp_path):
    answers = ['é,"quoted"', "</script>\n", "", "你好"]
    saved = made("finetuned", "short", answers, rtf=0.1234567890123, broken={"z": "no sound"}, notes={"a": "too quiet"})
    folder = tmp_path / "evaluations"
    evaluation.save(folder, saved)
    evaluation.save(folder, BEFORE)
    before, after = sorted(evaluation.load(folder), key=lambda e: e.name, reverse=True)
    assert (after, before) == (saved, BEFORE)
    assert list(after.rows.confidences.map(list)) == list(saved.rows.confidences)
    columns = [c for c in saved.rows if c != "confidences"]
    pd.testing.assert_frame_equal(after.rows[columns], saved.rows[columns], check_dtype=False)
    assert list(after.rows.hypothesis) == answers
    assert after.name == "finetuned--clean--short"
    assert (after.label, before.label) == ("finetuned, short context", "pretrained, 30 s")
    assert {p.name for p in folder.iterdir()} == {
        f"{e.name}.{x}" for e in (saved, BEFORE) for x in ("json", "parquet", "ref.trn", "hyp.trn")
    }
    heard = utterances.read(folder / "pretrained--clean--full.hyp.trn", "hypothesis")
    assert heard.texts["x-a"] == "please press 2" and set(heard.speakers.values()) == {"x", "y"}


def test_an_evaluation_of_an_older_version_is_left_out(tmp_path):
    evaluation.save(tmp_path, BEFORE)
    evaluation.save(tmp_path, AFTER)
    meta = tmp_path / f"{BEFORE.name}.json"
    old = json.loads(meta.read_text())
    meta.write_text(json.dumps({k: v for k, v in old.items() if k != "heard_sha256"}))
    assert [e.name for e in evaluation.load(tmp_path)] == [AFTER.name]


def test_an_evaluation_is_found_by_name(run, monkeypatch):
    monkeypatch.setattr(evaluation, "find", lambda name: run)
    with pytest.raises(InputError, match="holds no such evaluation") as e:
        evaluation.kept("latest")
    assert "speechlab evaluate" in str(e.value)
    folder = run.path / "evaluations"
    for one in (BEFORE, AFTER, made("finetuned", "full", PERFECT), made("finetuned", "short", PERFECT, condition="white-10db")):
        evaluation.save(folder, one)
    assert evaluation.kept("latest").name == "finetuned--clean--full.parquet"
    evaluation.save(folder, made("finetuned", "silence", PERFECT))
    assert evaluation.kept("latest").name == "finetuned--clean--silence.parquet"
    assert evaluation.kept("latest:pretrained--clean--full").name == "pretrained--clean--full.parquet"
    assert evaluation.kept(f"{folder}:finetuned--clean--short") == folder / "finetuned--clean--short.parquet"
    with pytest.raises(InputError, match='did you mean "finetuned--clean--full"'):
        evaluation.kept("latest:finetuned--clean--ful")


# --- runs ---


@pytest.mark.slow
def test_a_run_is_measured_once(trained, monkeypatch):
    measured = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *a, **how: measured.append((how["context"], how["seconds"])) or decode(*a, **how))
    first = evaluation.evaluate_run(trained, progress=False)
    assert [e.name for e in first] == [
        "pretrained--clean--silence",
        "pretrained--clean--full",
        "pretrained--white-10db--silence",
        "finetuned--clean--silence",
        "finetuned--clean--short",
        "finetuned--clean--full",
        "finetuned--white-10db--silence",
    ]
    batch = trained.config.evaluation.batch_seconds
    expected = [(e.context, s) for e in first for s in [batch, batch, *([0] if e.timed else [])]]  # a warm-up each
    assert measured == expected
    assert [e.name for e in first if e.timed] == ["pretrained--clean--silence", "finetuned--clean--silence"]
    corpus = corpora.configured(trained.config.corpus)
    available = evaluation.systems(trained)
    for e in first:
        assert list(e.rows.id) == sorted(c.id for c in corpus.cuts["test"])
        assert e.rows.duration.sum() == pytest.approx(corpus.seconds["test"])
        assert e.rows[["substitutions", "deletions", "insertions"]].sum().sum() / e.rows.words.sum() == e.wer
        assert (e.rows.context == 30).all() or e.context != "full"
        assert e.weights_sha256 == available[e.system].sha256
    assert len({e.heard_sha256 for e in first}) == 2

    measured.clear()
    again = evaluation.evaluate_run(trained, progress=False)
    assert not measured
    assert again == first

    # one that is of other weights, or heard something else, is measured again, alone
    for name, change in (
        ("finetuned--clean--short", {"weights_sha256": "0" * 64}),
        ("pretrained--white-10db--silence", {"heard_sha256": "x"}),
    ):
        meta = trained.path / "evaluations" / f"{name}.json"
        meta.write_text(json.dumps(json.loads(meta.read_text()) | change))
        measured.clear()
        evaluation.evaluate_run(trained, progress=False)
        assert [context for context, _ in measured] == [name.rpartition("--")[2]] * 2
    more = evaluation.evaluate_run(trained, ["gsm"], progress=False)
    assert [e.name for e in more] == ["pretrained--gsm--silence", "finetuned--gsm--silence"]


def test_a_run_that_is_not_trained_yet_has_only_the_pretrained_system(run):
    assert set(evaluation.systems(run)) == {"pretrained"}


def test_an_unknown_condition_is_refused_before_anything_is_decoded(run, monkeypatch):
    monkeypatch.setattr(decoding, "decode", lambda *a, **how: pytest.fail("decoded"))
    with pytest.raises(InputError, match='did you mean "gsm"'):
        evaluation.evaluate_run(run, ["clean", "gsn"], progress=False)


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


@pytest.mark.slow
def test_real_output_scores_as_sclite_scores_it(real, prompts, tmp_path):
    """Corpus WER within 0.05 points, on what a real model really heard in noise."""
    heard = conditions.prepare("white-5db", some(prompts, 60), 1)
    found = evaluation.evaluate(real, heard, experiment().evaluation)
    evaluation.save(tmp_path, found)
    nist = sums(f"{found.name}.ref.trn", f"{found.name}.hyp.trn", tmp_path)
    scores = found.scores("english")
    assert (nist["utterances"], nist["words"]) == (len(scores), scores.words) and nist["errors"] > 30
    assert 100 * scores.wer == pytest.approx(100 * nist["errors"] / nist["words"], abs=0.05)
