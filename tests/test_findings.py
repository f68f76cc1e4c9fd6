"""Findings: every bar, cell and dot of a figure leads to the utterances that brute force finds for it."""

from __future__ import annotations

import dataclasses
import re

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from heard import clips, heard

from speechlab import calibration, confusions, phones, strata
from speechlab.cases import Cases
from speechlab.errors import InputError
from speechlab.findings import BARS, SECTIONS, STRATA, Findings
from speechlab.markup import Html

NOISE = {"the": "a", "number": "lumber", "three": "free", "please": "", "you": "you you", "press": "dress", "line": "lion"}


def garbled(text: str, rng: np.random.Generator) -> str:
    return " ".join(NOISE[w] if w in NOISE and rng.random() < 0.7 else w for w in re.sub(r"[^a-z ]", "", text.lower()).split())


@pytest.fixture(scope="module")
def made(prompts) -> Findings:
    """All test clips, some of their words misheard, with a column and speakers that they do not have."""
    rng = np.random.default_rng(5)
    cuts = sorted(prompts.cuts["test"], key=lambda c: c.id)
    texts = [(c.supervisions[0].text, garbled(c.supervisions[0].text, rng)) for c in cuts]
    sure = [list(np.round(rng.uniform(0.2, 1, len(text.split())), 3)) for _, text in texts]
    speakers = [f"speaker {i % 3}" for i in range(len(cuts))]
    found = Cases(heard(cuts, texts, sure, speakers=speakers), cuts)
    columns = strata.table(cuts, measured=False).assign(
        speaker=speakers, accent=[("north", "south", None)[i % 3] for i in range(len(cuts))], snr=rng.normal(20, 5, len(cuts))
    )
    return Findings(found, columns)


def rows(made: Findings, section: str):
    """Every clickable layer of a section, with what a click on each of its rows gives."""
    for finding in made.section(section):
        for layer, pick in finding.picks:
            yield layer, [(layer.data.iloc[i], *pick(i)) for i in range(len(layer.data))]


def test_every_section_has_its_figures(made):
    counts = {name: [len(f.picks) for f in made.section(name)] for name in SECTIONS}
    assert counts == {
        "words": [1, 1, 1],
        "phones": [0, 1],
        "places": [3, 3],
        "loops": [0, 0, 0],
        "strata": [1, 1, 1, 1, 1],  # speaker, accent, duration, SNR, rate; nobody measured the level
        "confidence": [1, 0, 0],
    }
    for name in SECTIONS:
        for finding in made.section(name):
            assert isinstance(finding.shown, Html) or hv.render(finding.shown, backend="bokeh").title.text
            for layer, _ in finding.picks:
                assert "tap" in hv.Store.lookup_options("bokeh", layer, "plot").kwargs["tools"]


def test_an_unknown_section_is_named(made):
    with pytest.raises(InputError, match=r'no such section[\s\S]*got: +word\n[\s\S]*did you mean "words"'):
        made.section("word")


def test_a_bar_leads_to_the_utterances_with_that_pair(made):
    words = made.cases.words
    seen = 0
    for _, found in rows(made, "words"):
        for row, title, ids in found:
            said, heard_ = ("" if w == phones.NOTHING else w for w in (row.said, row.heard))
            wanted = words[(words.said == said) & (words.heard == heard_)]
            assert list(ids) == list(wanted.id.unique())
            assert len(wanted) == row["count"]
            assert title == f"{row.said} → {row.heard}"
            seen += len(ids)
    assert seen > 20


def test_the_bars_say_how_many_there_are(made):
    scores = made.cases.scores
    titles = [hv.Store.lookup_options("bokeh", f.shown, "plot").kwargs["title"] for f in made.section("words")]
    parts = {title.split(":")[0]: int(title.split()[1]) for title in titles}
    assert sum(parts.values()) == scores.errors
    assert list(parts) == ["Replaced", "Missed", "Added"]


def test_a_dash_that_is_a_word_is_one(prompts):
    cuts = clips(prompts, 2)
    e = heard(cuts, [("a – b", "a c b"), ("a b", "a b –")])
    raw = dataclasses.replace(e, normaliser="raw 1 (x)")
    found = Findings(Cases(raw, cuts), strata.table(cuts, measured=False)).words()
    (replaced,), (added,) = found[0].picks, found[2].picks
    assert replaced[1](0) == ("– → c", [cuts[0].id])
    assert added[1](0) == ("– → –", [cuts[1].id])


def test_a_cell_leads_to_the_utterances_whose_words_differ_so(made):
    by_phones = phones.confusions(made.cases.words)
    ((_, found),) = rows(made, "phones")
    assert len(found) == 40 * 40
    clicked = {(row.said, row.heard): ids for row, _, ids in found}
    wrong = by_phones.pairs[by_phones.pairs.said != by_phones.pairs.heard]
    assert len(wrong) > 20
    for (said, heard_), part in wrong.groupby(["said", "heard"]):
        assert list(clicked[said, heard_]) == list(part.id.unique())
    assert sum(bool(ids) for pair, ids in clicked.items() if pair[0] != pair[1]) == len(wrong.groupby(["said", "heard"]))


def test_the_phones_are_said_to_be_of_a_dictionary(made):
    note, figure = made.section("phones")
    by_phones = phones.confusions(made.cases.words)
    assert f"OOV rate {100 * by_phones.oov:.1f} %" in note.shown
    assert str(by_phones) in note.shown
    assert "Pronunciations in CMUdict, not sounds" in note.shown
    assert "not by sound" in hv.render(figure.shown, backend="bokeh").title.text


def test_phones_of_other_languages_are_not_looked_up(prompts):
    cuts = clips(prompts, 2)
    e = heard(cuts, [("uno", "due")] * 2)
    for cut in cuts:
        cut.supervisions[0].language, before = "it", cut.supervisions[0].language
    try:
        (note,) = Findings(Cases(e, cuts), strata.table(cuts, measured=False)).section("phones")
    finally:
        for cut in cuts:
            cut.supervisions[0].language = before
    assert "of English, the clips are in it" in note.shown


def test_a_piece_of_a_bar_leads_to_errors_of_its_kind_and_place(made):
    words = made.cases.words
    ops = {kind: op for op, kind in confusions.KINDS.items()}
    by_place, by_length = made.section("places")
    seen = 0
    for (layer, pick), table, column in [
        *((p, confusions.by_position(words), "position") for p in by_place.picks),
        *((p, confusions.by_length(words), "words") for p in by_length.picks),
    ]:
        for i, row in enumerate(table.itertuples()):
            wrong = words[words.op == ops[layer.label]]
            if column == "words":
                mine = wrong[(wrong.words >= row.low) & (wrong.words <= row.high)]
            else:
                mine = wrong[(wrong.position >= row.low - 1e-9) & ((wrong.position < row.high - 1e-9) | (row.high == 1))]
            assert list(pick(i)[1]) == list(mine.id.unique())
            assert len(mine) == layer.data.errors.iloc[i]
            seen += len(mine)
    assert seen > 50


def test_loops_and_inventions_are_listed(prompts):
    cuts = clips(prompts, 4)
    e = heard(cuts, [("hello", "no " * 30), ("", "thank you"), ("", "thank you"), ("a <b>", "a " + "long " * 3 + "x" * 500)])
    rows_ = e.rows.assign(ended=[True, True, True, False])
    loops, invented, endless = Findings(Cases(dataclasses.replace(e, rows=rows_), cuts), strata.table(cuts, measured=False)).section(
        "loops"
    )
    assert loops.leads == ("phrases that the system repeated", [cuts[0].id])
    assert invented.leads == ("heard where nothing was said", [cuts[1].id, cuts[2].id])
    assert [td.text for td in BeautifulSoup(str(invented.shown), "html.parser").find_all("td")] == ["thank you", "2"]
    assert endless.leads == ("decoding that came to no end", [cuts[3].id])
    assert "…" in endless.shown
    assert len(str(endless.shown)) < 1000


def test_where_nothing_was_made_up_it_says_so(made):
    assert ["none" in f.shown and f.leads is None for f in made.section("loops")] == [True] * 3


def test_a_dot_leads_to_its_stratum_the_worst_first(made):
    scores, ids = made.cases.scores, made.cases.ids
    errors = dict(zip(ids, scores.errors_U, strict=True))
    checked = []
    for _, found in rows(made, "strata"):
        for row, title, listed in found:
            assert len(listed) == row.utterances
            assert sorted((errors[i] for i in listed), reverse=True) == [errors[i] for i in listed]
            assert 100 * scores.only([ids.index(i) for i in listed]).wer == pytest.approx(row.wer)
            checked.append(title.partition(":")[0])
    assert set(checked) == {"speaker", "accent", "duration", "SNR", "speaking rate"}
    assert checked.count("accent") == 3, "north, south and unknown"


def test_many_speakers_are_cut_to_the_worst(prompts):
    cuts = list(prompts.cuts["test"]) * 12
    ids = [f"{i}" for i in range(len(cuts))]
    speakers = [f"s{i % (STRATA + 20)}" for i in range(len(cuts))]
    texts = [("one two three", "one two three" if i % 7 else "x") for i in range(len(cuts))]
    from speechlab import corpora

    known = [corpora.base.clip(i, c.recording.sources[0].source, c.recording.num_samples, "", s, "en", "test", "")
             for i, c, s in zip(ids, cuts, speakers, strict=True)]  # fmt: skip
    made_ = Findings(Cases(heard(cuts, texts, ids=ids, speakers=speakers), known), strata.table(known, measured=False), resamples=50)
    figure = made_.section("strata")[0].shown
    (dots,) = (layer for layer in figure if isinstance(layer, hv.Points))
    assert len(dots.data) == STRATA
    everyone = strata.by(made_.cases.scores, speakers, resamples=50)
    assert dots.data.wer.min() >= 100 * everyone.wer.sort_values(ascending=False).iloc[STRATA - 1] - 1e-9


def test_a_bin_leads_to_its_words_wrong_ones_first(made):
    judged = made.cases.judged
    table = calibration.reliability(judged)
    ((_, found),) = rows(made, "confidence")
    owners = [i for i, text in zip(made.cases.ids, judged.scores.hypotheses, strict=True) for _ in text.split()]
    total = 0
    for (_, title, ids), expected in zip(found, table.itertuples(), strict=True):
        low, high = map(float, expected.bin.split(" to "))
        inside = [(right, owner) for c, right, owner in zip(judged.confidence_W, judged.right_W, owners, strict=True) if low <= c <= high]
        assert len(inside) == expected.words
        assert set(ids) == {owner for _, owner in inside}
        wrong = {owner for right, owner in inside if not right}
        assert set(ids[: len(wrong)]) == wrong
        assert expected.bin in title
        total += len(inside)
    assert total == len(owners)


def test_the_numbers_are_those_of_calibration(made):
    figure, curve, numbers = made.section("confidence")
    c, r = calibration.calibration(made.cases.judged), calibration.rejection(made.cases.judged)
    cells = {
        row.find_all("td")[0].text: row.find_all("td")[1].text
        for row in BeautifulSoup(str(numbers.shown), "html.parser").find_all("tr")[1:]
    }
    assert cells["ECE"] == f"{100 * c.ece:.2f} %"
    assert cells["AUROC"] == f"{c.auroc:.3f}"
    tenth = r.table[r.table.rejected <= 0.105].iloc[-1]
    assert cells["WER after rejecting 10 %"] == f"{100 * tenth.wer:.2f} %"
    assert numbers.leads == ("the least sure first", made.cases.hardest(10**6, "confidence"))


def test_nothing_said_nothing_sure_and_nothing_wrong_are_said(prompts):
    cuts = clips(prompts, 3)
    columns = strata.table(cuts, measured=False)
    silent = Findings(Cases(heard(cuts, [("", "you"), ("", ""), ("", "you you")], [[0.5], [], [0.5, 0.5]]), cuts), columns)
    assert "no error rate" in silent.section("strata")[0].shown
    assert "Nothing was said" in silent.section("places")[0].shown
    assert len(silent.section("phones")) == 1
    assert len(silent.section("confidence")) == 2, "nothing can be rejected"
    perfect = Findings(Cases(heard(cuts, [("a", "a")] * 3), cuts), columns)
    assert ["no word" in f.shown for f in perfect.section("words")] == [True] * 3
    assert "does not say how sure" in perfect.section("confidence")[0].shown
    for name in SECTIONS:
        for finding in [*silent.section(name), *perfect.section(name)]:
            assert isinstance(finding.shown, Html) or hv.render(finding.shown, backend="bokeh")


def test_only_the_most_common_pairs_are_bars(prompts):
    cuts = clips(prompts, 1)
    said, other = (" ".join(f"{prefix}{i}" for i in range(40)) for prefix in ("a", "b"))
    (replaced, *_) = Findings(Cases(heard(cuts, [(said, other)]), cuts), pd.DataFrame({"id": [cuts[0].id]})).words()
    assert len(replaced.shown.data) == BARS
