"""Anybody's texts: read, joined by id, written for sclite."""

from __future__ import annotations

import json
import re
import subprocess

import pandas as pd
import pytest
from counts import assert_complete, need_sctk
from hypothesis import example, given
from hypothesis import strategies as st

from speechlab import utterances
from speechlab.errors import InputError

ROWS = {"s1-u1": "the cat sat", "s1-u2": "", "s2-u1": "naïve café"}
WORD = st.text(st.characters(blacklist_categories=("Z", "C")), min_size=1, max_size=6)


def write(folder, name: str) -> str:
    """The same three utterances in one of the formats."""
    path = folder / name
    table = pd.DataFrame({"id": list(ROWS), "text": list(ROWS.values()), "speaker": [key[:2] for key in ROWS]})
    if name.endswith("trn"):
        path.write_text(";; a comment\n\n" + "".join(f"{text} ({key})\n" for key, text in ROWS.items()), "utf-8")
    elif name.endswith("jsonl"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_dict("records")), "utf-8")
    elif name.endswith("parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if name.endswith("tsv") else ",", index=False)
    return str(path)


@pytest.mark.parametrize("name", ["a.trn", "a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_every_format_says_the_same(name, tmp_path):
    found = utterances.read(write(tmp_path, name), "hypothesis")
    assert found.texts == ROWS
    assert found.speakers == {"s1-u1": "s1", "s1-u2": "s1", "s2-u1": "s2"}


def test_the_column_that_is_meant_is_taken(tmp_path):
    path = tmp_path / "both.csv"
    path.write_text("Utterance,Reference,pred_text\nu1,said,heard\n", "utf-8")
    assert utterances.read(path, "reference").texts == {"u1": "said"}
    assert utterances.read(path, "hypothesis").texts == {"u1": "heard"}
    assert utterances.read(path, "hypothesis").speakers is None
    (tmp_path / "one.trn").write_text("a (u1)\n")
    assert utterances.read(tmp_path / "one.trn", "reference").speakers is None


BAD = {
    "no parenthesis.trn": ("just words\n", "Line 1 of"),
    "alternation.trn": ("the { cat / hat } sat (a-1)\n", "alternations"),
    "optional.trn": ("the (uh) cat (a-1)\n", "alternations"),
    "nothing.trn": ("the @ cat (a-1)\n", "alternations"),
    "twice.trn": ("a (a-1)\nb (a-1)\n", "stands twice"),
    "empty.trn": (";; nothing\n", "holds no utterance"),
    "no id.csv": ("name,text\nx,y\n", "no column for the utterance's id"),
    "no text.csv": ("id,words\nx,y\n", "no column for the hypothesis"),
    "ragged.csv": ('id,text\n"a,b\n', "cannot be read"),
    "wrong.jsonl": ('{"id": "a"\n', "cannot be read"),
    "number.jsonl": ('{"id": "a", "text": 7}\n', "Row 1 of"),
    "null.jsonl": ('{"id": "a", "text": null}\n', "Row 1 of"),
    "list.jsonl": ("[1, 2]\n", "no column"),
    "deep.jsonl": ("[" * 100_000 + "\n", "cannot be read"),
    "no.parquet": ("not parquet", "cannot be read"),
    "words.docx": ("", "unknown ending"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name, tmp_path):
    content, said = BAD[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said) as e:
        utterances.read(tmp_path / name, "hypothesis")
    assert "got:" in str(e.value) and "expected:" in str(e.value)


def test_what_is_not_utf_8_or_not_there(tmp_path):
    (tmp_path / "latin.trn").write_bytes("café (a-1)\n".encode("latin-1"))
    for name, said in (("latin.trn", "cannot be read"), ("none.trn", "is not there")):
        with pytest.raises(InputError, match=said):
            utterances.read(tmp_path / name, "hypothesis")


def texts(rows: dict[str, str], speakers=None) -> utterances.Texts:
    return utterances.Texts("file", rows, speakers)


def test_missing_and_extra_ones_are_policy():
    reference = texts({"b": "one", "a": "two words"}, {"b": "s1", "a": "s2"})
    hypothesis = texts({"a": "two words", "c": "three"})
    for missing, extra, said in (("refuse", "leave", "1 of 2 utterances have no hypothesis"), ("leave", "refuse", "1 hypotheses have no")):
        with pytest.raises(InputError, match=said) as e:
            utterances.join(reference, hypothesis, missing, extra)
        assert_complete(e)
    left = utterances.join(reference, hypothesis, "leave", "leave")
    assert (left.ids, left.hypotheses, left.speakers) == (("a",), ("two words",), ("s2",))
    deleted = utterances.join(reference, hypothesis, "deleted", "leave")
    assert (deleted.ids, deleted.hypotheses) == (("b", "a"), ("", "two words"))
    assert (deleted.missing, deleted.extra) == (("b",), ("c",))
    with pytest.raises(InputError, match="share no utterance"):
        utterances.join(reference, texts({"x": "y"}), "leave", "leave")


@given(st.dictionaries(WORD, WORD, min_size=1), st.dictionaries(WORD, WORD, min_size=1))
def test_nothing_is_lost_when_joining(said, heard):
    if not set(said) & set(heard):
        return
    joined = utterances.join(texts(said), texts(heard), "leave", "leave")
    assert len(joined.ids) + len(joined.missing) == len(said)
    assert len(joined.ids) + len(joined.extra) == len(heard)
    assert all(joined.references[i] == said[key] and joined.hypotheses[i] == heard[key] for i, key in enumerate(joined.ids))
    again = utterances.ordered(joined, joined.ids[::-1])
    assert again.references == joined.references[::-1] and again.ids == joined.ids[::-1]


@example([("0", "@{ a@ (@)")])
@given(st.lists(st.tuples(WORD, st.lists(WORD).map(" ".join)), min_size=1, unique_by=lambda row: row[0]))
def test_what_is_written_as_trn_can_be_read(rows):
    ids, said = (list(column) for column in zip(*rows, strict=True))
    lines = utterances.trn(ids, said, ["s"] * len(ids)).splitlines()
    assert len(lines) == len(rows)
    for line, (_, text) in zip(lines, rows, strict=True):
        match = utterances.LINE.fullmatch(line)
        assert match and not utterances.SYNTAX.search(match["text"])
        assert match["text"].split() == [word for word in re.sub(r"[{}()]", "", text).split() if word != "@"]


def test_sclite_reads_it(tmp_path):
    need_sctk()
    for name in ("ref", "hyp"):
        (tmp_path / name).write_text(utterances.trn(["u-1", "u 2"], ["a { b } c", "d" if name == "ref" else ""], ["x y", "z"]))
    command = ["sctk", "sclite", "-r", "ref", "trn", "-h", "hyp", "trn", "-i", "spu_id", "-o", "rsum", "stdout"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "x.y" in said and " Sum " in said
