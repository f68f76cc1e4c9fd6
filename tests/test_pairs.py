"""Two systems by name: files, evaluations, families of trainings."""

from __future__ import annotations

import pandas as pd
import pytest
from counts import two_systems
from evaluated import AFTER, BEFORE, experiment

from speechlab import audio, comparison, evaluation, pairs, utterances
from speechlab.errors import InputError
from speechlab.runs import Run


@pytest.fixture
def files(tmp_path):
    worse, better = two_systems(speakers=25, utterances=200)
    names = [f"u{i:03d}" for i in range(200)]
    for name, texts in {"ref": worse.references, "a": worse.hypotheses, "b": better.hypotheses}.items():
        (tmp_path / f"{name}.trn").write_text(utterances.trn(names, texts, worse.speakers))
    return tmp_path


def test_files_are_brought_to_the_same_order(files):
    lines = (files / "b.trn").read_text().splitlines(keepends=True)
    (files / "shuffled.trn").write_text("".join(reversed(lines)))
    straight = pairs.pair(str(files / "a.trn"), str(files / "b.trn"), files / "ref.trn", "raw")
    found = pairs.pair(str(files / "a.trn"), str(files / "shuffled.trn"), files / "ref.trn", "raw")
    assert found.ids == straight.ids and found.b[0].hypotheses == straight.b[0].hypotheses
    assert found.difference().points == straight.difference().points < 0
    assert isinstance(found.difference(), comparison.Difference)


def test_names_with_commas_are_families(files):
    a, b = files / "a.trn", files / "b.trn"
    found = pairs.pair(f"{a}, {a}", f"{b},{b},{b}", files / "ref.trn", "raw")
    assert (len(found.a), len(found.b)) == (2, 3) and found.names_b == (str(b),) * 3
    single = pairs.pair(str(a), str(b), files / "ref.trn", "raw").difference()
    families = found.difference()
    assert isinstance(families, comparison.Families)
    assert families.points == pytest.approx(single.points)
    # equal trainings: their mean is each of them, and so are the paired intervals
    assert (families.interval.low, families.interval.high) == pytest.approx((single.interval.low, single.interval.high))
    assert families.p == pytest.approx(single.p, abs=0.02)


def test_what_cannot_be_paired_is_refused(files):
    a, b = files / "a.trn", files / "b.trn"
    with pytest.raises(InputError, match="says nothing of what was said"):
        pairs.pair(str(a), str(b))
    with pytest.raises(InputError, match="has no name"):
        pairs.pair(",", str(b), files / "ref.trn")
    (files / "less.trn").write_text("".join((files / "b.trn").read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match="have no hypothesis"):
        pairs.pair(str(a), str(files / "less.trn"), files / "ref.trn")
    with pytest.raises(InputError, match="not given the same utterances"):
        pairs.pair(str(a), str(files / "less.trn"), files / "ref.trn", missing="leave")
    with pytest.raises(InputError, match="Unknown policy"):
        pairs.pair(str(a), str(b), files / "ref.trn", missing="ignore")


@pytest.fixture
def run(tmp_path, prompts) -> Run:
    made = Run.create(experiment(), tmp_path)
    ids = sorted(cut.id for cut in prompts.cuts["test"])[:4]
    for e in (BEFORE, AFTER):
        evaluation.save(made.path / "evaluations", evaluation.Evaluation(**{**vars(e), "rows": e.rows.assign(id=ids)}))
    return made


def test_evaluations_of_a_run_have_sound(run):
    found = pairs.pair(f"{run.path}:pretrained--clean--full", str(run.path))
    assert found.difference().points == pytest.approx(-20)
    clips = pairs.sounds(str(run.path))
    assert clips.keys() == {c.id for c in pairs.corpora.configured(run.config.corpus).cuts["test"]}
    known = next(iter(clips))
    assert len(audio.decode(pairs.sound(clips, known))) / 16_000 == pytest.approx(clips[known].duration, abs=0.2)
    assert pairs.sound(clips, "nobody") is None


def test_strata_come_from_a_table_the_speakers_and_the_clips(files, prompts):
    found = pairs.pair(str(files / "a.trn"), str(files / "b.trn"), files / "ref.trn", "raw")
    pd.DataFrame({"id": found.ids, "stratum": ["x", "y"] * 100}).to_csv(files / "accents.csv", index=False)
    labels = pairs.strata(found, {}, files / "accents.csv")
    assert list(labels) == ["accents.csv", "speaker"] and list(labels["accents.csv"][:2]) == ["x", "y"]
    cuts = dict(zip(found.ids, list(prompts.cuts["train"])[:200], strict=True))
    measured = pairs.strata(found, cuts)
    assert {"duration", "speaking rate", "level"} <= set(measured)
    durations = [cuts[i].duration for i in found.ids]
    first = [d for d, label in zip(durations, measured["duration"], strict=True) if label == measured["duration"].cat.categories[0]]
    assert max(first) <= sorted(durations)[len(first)]
    pd.DataFrame({"id": found.ids[1:], "stratum": "x"}).to_csv(files / "less.csv", index=False)
    with pytest.raises(InputError, match="1 utterances have no stratum"):
        pairs.strata(found, {}, files / "less.csv")
