"""Cases: the hardest first, cards whose words are those of the tables, folders in which nothing from outside is a name or markup."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
import pytest
from browser import EVIL, EVIL_TEXT, becomes, chromium, play, pwned, watch
from bs4 import BeautifulSoup
from heard import clips, heard
from test_plots import live_markup

from speechlab import audio, conditions, config, confusions, corpora, evaluation, text
from speechlab.cases import Cases, opened
from speechlab.errors import InputError
from speechlab.runs import Run

TEXTS = [
    ("Unmuted now.", "on mute now"),  # two errors, in which the alignment has a choice
    ("please hold the line", "please hold the line"),
    ("one two three four", "one"),
    ("five", "nine ten"),
    ("", "thank you"),
]
SURE = [[0.5, 0.2, 0.9], [0.9] * 4, [0.8], [0.1, 0.1], [0.6, 0.6]]


@pytest.fixture(scope="module")
def cuts(prompts):
    return clips(prompts, len(TEXTS))


@pytest.fixture
def made(cuts) -> Cases:
    return Cases(heard(cuts, TEXTS, SURE), cuts)


def test_the_hardest_have_most_errors_the_shortest_first(made, cuts):
    ids = [c.id for c in cuts]
    assert made.hardest() == [ids[2], *sorted([ids[4]]), ids[3], ids[0]]
    assert list(made.table.set_index("id").errors[made.hardest()]) == [3, 2, 2, 2]
    assert made.hardest(1) == [ids[2]]


def test_the_least_sure_come_first_those_without_a_word_before_them(cuts):
    silent = [*TEXTS[:4], ("hello", "")]
    found = Cases(heard(cuts, silent, [*SURE[:4], []]), cuts).hardest(3, "confidence")
    assert found == [cuts[4].id, cuts[3].id, cuts[0].id]


def test_confidences_are_asked_of_those_that_have_them(cuts, made):
    none = Cases(heard(cuts, TEXTS), cuts)
    assert none.judged is None
    with pytest.raises(InputError, match=r"does not say how sure[\s\S]*finetuned--clean--silence"):
        none.hardest(3, "confidence")
    with pytest.raises(InputError, match=r"Unknown order[\s\S]*got: +length[\s\S]*errors or confidence"):
        made.hardest(3, "length")


def test_an_evaluation_wants_its_own_clips(cuts):
    with pytest.raises(InputError, match=rf"clips do not fit[\s\S]*1 without a clip, such as {cuts[0].id}[\s\S]*cases.opened"):
        Cases(heard(cuts, TEXTS), cuts[1:])


def test_a_card_shows_the_pair_that_the_tables_count(made, cuts):
    assert list(confusions.substitutions(made.words).loc[lambda t: t.said == "unmuted", "heard"]) == ["mute"]
    card = BeautifulSoup(str(made.card(cuts[0].id)), "html.parser")
    assert card.find(class_="sub")["title"] == "substituted: said unmuted, heard mute"
    assert card.find(class_="ins").text == "on"
    assert "2 errors in 2 words · confidence 0.45" in card.text
    assert "said: Unmuted now." in card.text
    assert "1 error in" not in card.text


def test_a_page_plays_only_so_much(made):
    every, some = (str(made.html(made.ids, heard=seconds)) for seconds in (1e9, made.table.duration.iloc[:2].sum() + 0.01))
    assert every.count("<audio") == len(TEXTS)
    assert "without a player" not in every
    assert some.count("<audio") == 2
    assert "3 without a player, to keep the page small" in some
    assert "No utterance" in str(made.html([]))


def test_a_clip_that_cannot_be_read_says_so(cuts, made, monkeypatch):
    def gone(cut):
        raise InputError("The file is gone.", got=EVIL_TEXT)

    monkeypatch.setattr(corpora, "load_audio", gone)
    card = str(made.card(cuts[0].id))
    assert "The file is gone." in card
    assert live_markup(card) == []


def test_sounds_are_made_once(cuts, made, monkeypatch):
    first = made.media(cuts[0].id)
    monkeypatch.setattr(corpora, "load_audio", None)
    assert made.media(cuts[0].id) is first


# --- a folder ---


@pytest.fixture(scope="module")
def evil(cuts, tmp_path_factory):
    """An export in which every text from outside is hostile."""
    ids = ["../../../outside", "/etc/passwd", EVIL_TEXT, "=cmd|' /C calc'!A0", "a\x00b/..\\c"]
    texts = [(EVIL_TEXT, "x"), ("=1+1", "@SUM(A1)"), ("-2", "+3"), ('a, "b"\nc', "d"), ("e", EVIL_TEXT)]
    e = heard(cuts, texts, ids=ids, speakers=[EVIL_TEXT, "=s", "b", "", "d"])
    clips_ = [corpora.base.clip(id, cut.recording.sources[0].source, cut.recording.num_samples, "", "", "en", "test", cut.custom["audio"])
              for id, cut in zip(ids, cuts, strict=True)]  # fmt: skip
    folder = tmp_path_factory.mktemp("outer") / "inner" / "export"
    made = Cases(e, clips_)
    return made, made.export(folder, 9)


def test_nothing_leaves_the_folder_and_no_name_is_from_outside(evil):
    made, page = evil
    outer = page.parents[2]
    files = [p.relative_to(page.parent).as_posix() for p in outer.rglob("*") if p.is_file()]
    assert all(p.is_relative_to(page.parent) for p in outer.rglob("*") if p.is_file())
    assert {name for name in files if "/" not in name} == {"clips.csv", "clips.jsonl", "index.html"}
    assert len(files) == 3 * 5 + 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./") for name in files)


def test_the_tables_hold_the_texts_as_they_are_but_formulas(evil):
    made, page = evil
    lines = [json.loads(line) for line in (page.parent / "clips.jsonl").read_text("utf-8").splitlines()]
    assert [row["id"] for row in lines] == made.hardest(9)
    assert [row["rank"] for row in lines] == [1, 2, 3, 4, 5]
    by_id = {row["id"]: row for row in lines}
    assert by_id["/etc/passwd"]["reference"] == "=1+1"
    assert by_id["../../../outside"]["confidence"] is None
    cells = list(csv.DictReader(io.StringIO((page.parent / "clips.csv").read_text("utf-8"), newline="")))
    assert [row["id"].removeprefix("'") for row in cells] == [row["id"] for row in lines]
    for row in cells:
        assert not any(value.startswith(("=", "+", "-", "@")) for value in row.values())
    assert {"'=1+1", "'-2", 'a, "b"\nc'} <= {row["reference"] for row in cells}


def test_the_samples_are_those_that_were_heard(evil, cuts):
    made, page = evil
    for row in map(json.loads, (page.parent / "clips.jsonl").read_text("utf-8").splitlines()):
        assert (page.parent / row["file"]).parent == page.parent / "clips"
        assert audio.pcm_sha256(audio.decode(page.parent / row["file"])) == audio.pcm_sha256(
            corpora.load_audio(made.cuts[made.ids.index(row["id"])])
        )


def test_no_text_of_an_export_becomes_markup(evil, monkeypatch, cuts, tmp_path):
    made, page = evil
    found = live_markup(page.read_text("utf-8"))
    assert found == ["img"] * 10
    assert all(img["src"].startswith("clips/") for img in BeautifulSoup(page.read_text("utf-8"), "html.parser").find_all("img"))
    monkeypatch.setattr(text, "escape", str)  # negative control
    assert "script" in live_markup(made.export(tmp_path, 9).read_text("utf-8"))


def test_an_export_can_be_made_again(made, tmp_path):
    def state() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    made.export(tmp_path, 2)
    first = state()
    (tmp_path / "mine.txt").write_text("mine")
    made.export(tmp_path, 2, "errors")
    assert state() == first | {"mine.txt": b"mine"}
    assert "least sure of" in made.export(tmp_path, 2, "confidence").read_text("utf-8")


def test_an_evaluation_without_an_error_exports_an_empty_list(cuts, tmp_path):
    e = heard(cuts, [("a", "a")] * len(cuts))
    page = Cases(e, cuts).export(tmp_path)
    assert "the 0 utterances" in page.read_text("utf-8")
    assert (tmp_path / "clips.jsonl").read_text() == ""


@pytest.mark.slow
def test_the_page_of_an_export_plays_from_disk_and_runs_nothing(evil):
    _, page = evil
    with chromium() as browser:
        for width in (1280, 390):
            shown = browser.new_context(offline=True, viewport={"width": width, "height": 800}).new_page()
            log = watch(shown)
            shown.goto(page.as_uri())
            assert shown.locator("audio").count() == 5
            assert play(shown.locator("audio").first)["time"] > 0
            sizes = shown.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
            assert min(sizes) > 50
            assert shown.get_by_text("window.pwned").count() >= 2
            assert not pwned(shown)
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert log.errors == []
            assert log.external == []


@pytest.mark.slow
@pytest.mark.parametrize("evil_text", EVIL[:2])
def test_its_policy_would_stop_what_got_through(evil, tmp_path, evil_text):
    """A second line: an insert that is not escaped does not run on the page, and does without the page's policy."""
    _, page = evil
    got_through = page.read_text("utf-8").replace("<main", evil_text + "<main", 1)
    with chromium() as browser:
        for name, html, ran in (("with", got_through, False), ("without", got_through.replace("script-src 'none'; ", ""), True)):
            (tmp_path / f"{name}.html").write_text(html, "utf-8")
            shown = browser.new_page()
            shown.goto((tmp_path / f"{name}.html").as_uri())
            assert becomes(lambda shown=shown: pwned(shown), 30 if ran else 1) == ran


# --- opening ---


@pytest.fixture
def run(tmp_path, prompts) -> Run:
    """A run with an evaluation of three clips, and no weights."""
    experiment = config.load("configs/quickstart.yaml", ["corpus.limit=3", "model.weights=null", "model.family=conformer"])
    run = Run.create(experiment, tmp_path)
    cuts = list(corpora.configured(experiment.corpus).cuts["test"])
    for condition in ("clean", "white-10db"):
        known = conditions.prepare(condition, cuts, experiment.seed)
        texts = [(c.supervisions[0].text, "something else") for c in cuts]
        made = heard(cuts, texts, condition=condition, context="clip", system="trained", heard_sha256=known.sha256)
        evaluation.save(run.path / "evaluations", made)
    return run


def test_an_evaluation_opens_with_what_it_heard(run):
    clean = opened(run.path)
    assert clean.evaluation.name == "trained--clean--clip"
    assert clean.folder == run.path / "evaluations"
    noisy = opened(run.path, "trained--white-10db--clip")
    assert noisy.cuts[0].custom["heard"]["condition"] == "white-10db"
    assert not np.array_equal(corpora.load_audio(clean.cuts[0]), corpora.load_audio(noisy.cuts[0]))
    assert noisy.experiment == run.config
    assert (clean.system, clean.missing) == (None, "its weights are not at hand")
    Cases(noisy.evaluation, noisy.cuts)


def test_a_folder_of_evaluations_opens_with_a_config(run, tmp_path):
    folder = tmp_path / "elsewhere" / "evaluations"
    folder.mkdir(parents=True)
    for path in (run.path / "evaluations").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "small.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    found = opened(folder, "trained--clean--clip", tmp_path / "small.yaml")
    assert len(found.cuts) == 3
    assert found.system is None
    assert found.missing
    with pytest.raises(InputError, match=r"not those that this evaluation heard[\s\S]*name the config"):
        opened(folder, "trained--clean--clip", "configs/quickstart.yaml")


def test_what_cannot_be_opened_says_why(run):
    with pytest.raises(InputError, match=r"no such evaluation[\s\S]*trained--clean--clip"):
        opened(run.path, "trained--gsm--clip")
    path = run.path / "evaluations" / "trained--clean--clip.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "heard_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"not those that this evaluation heard[\s\S]*expected: 000000000000[\s\S]*restore the corpus"):
        opened(run.path)
    path.write_text(json.dumps({**meta, "old": 1}))
    with pytest.raises(InputError, match=r"another version of the lab[\s\S]*speechlab evaluate"):
        opened(run.path)


def test_the_table_is_one_row_an_utterance(made):
    assert list(made.table) == ["id", "speaker", "duration", "words", "errors", "confidence", "reference", "hypothesis", "alignment"]
    assert made.table.errors.sum() == made.scores.errors
    pd.testing.assert_series_equal(made.table.confidence, pd.Series([np.prod(c) ** (1 / len(c)) for c in SURE], name="confidence"))
