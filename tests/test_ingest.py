"""Ingestion: a Ray Data pipeline that is killed, goes on, and leaves shards that plain lhotse reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechlab import corpora, ingest
from speechlab.config import corpus_section
from speechlab.corpora import base, shards
from speechlab.corpora.check import SET_ASIDE
from speechlab.errors import InputError

RATE = 16_000
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(prompts, tmp_path_factory) -> Path:
    """Ninety clips with a manifest: sixty as FLAC, thirty at 8 kHz, and five that cannot be used."""
    root = tmp_path_factory.mktemp("ingest") / "mine"
    root.mkdir()
    rows = []
    cuts = [c for c in prompts.cuts["train"] if 1 < c.duration < 4][:90]
    for n, cut in enumerate(cuts):
        name = f"{n:03d}.flac"
        wave = corpora.load_audio(cut)
        soundfile.write(root / name, wave[::2] if n % 3 == 0 else wave, 8000 if n % 3 == 0 else RATE)
        rows.append({"audio_filepath": name, "text": cut.supervisions[0].text, "id": cut.id, "accent": "US"})
    (root / "broken.flac").write_bytes(b"nothing")
    shutil.copy(root / "001.flac", root / "again.flac")
    long = np.tile(corpora.load_audio(cuts[0]), 40)[: 35 * RATE]
    soundfile.write(root / "long.flac", long, RATE)
    for name in ("broken", "again", "long", "gone"):
        text = cuts[1].supervisions[0].text if name == "again" else "some words"  # the same split, so the first stays
        rows.append({"audio_filepath": f"{name}.flac", "text": text, "id": f"../{name}"})
    rows.insert(20, {"audio_filepath": "002.flac", "text": "", "id": "empty"})
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def settings(folder):
    return corpus_section(name="own", root=str(folder))


@pytest.fixture(scope="module")
def ingested(folder, settings, tmp_path_factory) -> Path:
    """Shards of ten entries each, written by the command."""
    out = tmp_path_factory.mktemp("shards")
    entries, licence, _ = corpora.entries(settings)
    ingest.ingest(settings, entries, out, licence=licence, block=10)
    return out


def ids(corpus) -> set[str]:
    return {c.id for split in corpus.cuts.values() for c in split}


@pytest.mark.slow
def test_every_entry_ends_in_one_class(ingested):
    rows = [json.loads(line) for line in (ingested / "findings.jsonl").read_text().splitlines()]
    assert len(rows) == 95
    why = {row["id"]: row["why"] for row in rows if row["verdict"] == SET_ASIDE}
    assert set(why) == {"empty", "../broken", "../again", "../long", "../gone"}
    assert why["../again"].startswith("the same samples")
    assert json.loads((ingested / shards.STATE).read_text())["notes"]["clips"] == 90


@pytest.mark.slow
def test_plain_lhotse_reads_the_shards(ingested, folder):
    from lhotse import CutSet

    cuts = list(CutSet.from_shar(in_dir=ingested / shards.SHARDS))
    assert len(cuts) == 91  # the duplicate is known only at the end: it is in its shard, not in the listing
    for cut in cuts[::15]:
        wave = cut.load_audio()[0]
        assert len(wave) == round(cut.duration * RATE)
        assert cut.custom["audio"] == base.PCM + corpora.base.audio.pcm_sha256(wave)
        assert cut.supervisions[0].text


@pytest.mark.slow
def test_the_lab_reads_any_clip_at_any_time(ingested, folder, settings):
    corpus = corpora.prepare("shards", root=ingested)
    assert sum(corpus.clips.values()) == 90
    assert len(corpus.set_aside) == 5
    direct = corpora.configured(settings)
    assert ids(direct) == ids(corpus)
    there = {c.id: c for split in direct.cuts.values() for c in split}
    for split, cuts in corpus.cuts.items():
        for cut in cuts:
            assert there[cut.id].custom["split"] == split
            assert cut.custom["columns"] == {"accent": "US"}
            assert np.array_equal(corpora.load_audio(cut), corpora.load_audio(there[cut.id]))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(folder, ingested, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", f"""
from pathlib import Path
from speechlab import corpora, ingest
from speechlab.config import corpus_section
settings = corpus_section(name="own", root={str(folder)!r})
ingest.ingest(settings, corpora.entries(settings)[0], Path({str(out)!r}), block=10)
"""]  # fmt: skip
    first = subprocess.Popen(command, start_new_session=True)
    while not list(out.glob("entries/*.findings.jsonl")):
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {p.name: p.stat().st_mtime_ns for p in out.glob("entries/*.findings.jsonl")}
    assert 0 < len(done) < 10
    assert not (out / shards.LISTING).exists()
    with pytest.raises(InputError, match="goes on where it stopped"):
        corpora.prepare("shards", root=out)
    subprocess.run(command, check=True)
    assert {name: (out / "entries" / name).stat().st_mtime_ns for name in done} == done  # what was done is not done again
    assert [(out / n).read_bytes() == (ingested / n).read_bytes() for n in ("findings.jsonl",)] == [True]
    assert corpora.prepare("shards", root=out).manifest_sha256 == corpora.prepare("shards", root=ingested).manifest_sha256


@pytest.mark.slow
def test_a_clip_that_kills_its_worker_is_set_aside(folder, tmp_path):
    settings = corpus_section(name="own", root=str(folder), max_seconds=3.0, check={"long": "split"})
    entries, _, _ = corpora.entries(settings)
    long = [e for e in entries() if e.id == "../long"]

    def factory():
        def die_or_halve(wave_N, text, language, spans, limit):
            if text == "some words":
                os.abort()
            half = len(wave_N) / RATE / 2
            return [(0.0, half, text), (half, 2 * half, text)]

        return die_or_halve

    total = ingest.ingest(settings, entries, tmp_path, block=20, splitter=factory)
    rows = {r["id"]: r for r in map(json.loads, (tmp_path / "findings.jsonl").read_text().splitlines())}
    assert len(rows) == 95
    assert len(long) == 1
    assert rows["../long"]["why"] == "its audio crashed the decoder"
    halves = [r for r in rows.values() if r["parts"]]
    assert halves
    assert total["repair"]["cut at pauses into parts"] == len(halves)
    listed = ids(corpora.prepare("shards", root=tmp_path))
    for row in halves:
        assert {f"{row['id']}#1", f"{row['id']}#2"} <= listed


def test_another_corpus_in_the_folder_is_refused(folder, settings, tmp_path):
    entries, _, _ = corpora.entries(settings)
    state = {"rules": "x"}
    ingest._spool(entries, tmp_path, state, 10)
    assert ingest._spool(entries, tmp_path, state, 10).rows == 95  # the same once more is fine
    with pytest.raises(InputError, match="another rules"):
        ingest._spool(entries, tmp_path, {"rules": "y"}, 10)
    with pytest.raises(InputError, match="another digest"):
        ingest._spool(lambda: list(entries())[1:], tmp_path, state, 10)
    spooled = [e for number in range(10) for e in ingest._entries(tmp_path, number)]
    assert spooled == list(entries())


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/passwd", "a\\b", "ä", "", "x" * 300, ".hidden", "a//b", "a/"])
def test_names_in_archives_are_harmless(name):
    safe = shards.member(name)
    assert shards.SAFE.fullmatch(safe)
    assert len(safe) <= 200
    assert ".." not in safe.split("/")
    assert shards.member(name + "!") != safe


def test_a_listing_cannot_lead_out_of_its_folder(folder, tmp_path):
    (tmp_path / shards.STATE).write_text('{"language": "en", "licence": "", "attribution": "", "notes": {}}')
    (tmp_path / "findings.jsonl").write_text("")
    shards.write_listing(tmp_path, [{"recording": {"sources": [{"source": "../secret.tar"}]}}])
    with pytest.raises(InputError, match="outside its folder"):
        corpora.prepare("shards", root=tmp_path)
