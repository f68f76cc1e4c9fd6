"""Corpora: the real prompts as they are fetched, and a LibriSpeech tree built from a dozen of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import audio, corpora, fetch
from speechlab.corpora import base, voices
from speechlab.corpora import prompts as recipe
from speechlab.errors import InputError
from speechlab.text import normaliser

ENGLISH = normaliser("english")


@pytest.fixture(scope="session")
def source(prompts) -> Path:
    """The prompts as they were fetched, in the shared cache."""
    return fetch.cache() / "corpora/prompts/en/source"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SPEECHLAB_OFFLINE", "1")
    return fetch.cache()


@pytest.fixture
def small(source, tmp_path, monkeypatch) -> Path:
    """Every tenth of the real prompts with sums of their own, so that a test can prepare them anew in a moment."""
    folder = tmp_path / "small"
    rows = recipe.read_transcript((source / "core-sounds-en.txt").read_text("utf-8"))
    keys = dict(rows[::10]) | {"letters/a": "a"}
    for key in keys:
        if (source / f"{key}.g722").exists():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{key}.g722", folder / f"{key}.g722")
    (folder / "core-sounds-en.txt").write_text("\ufeff; every tenth\n" + "".join(f"{key}: {text}\n" for key, text in keys.items()), "utf-8")
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    sums = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    monkeypatch.setattr(voices.Source, "sums", property(lambda source: sums))
    return folder


def release(folder: Path, downloads: Path, monkeypatch) -> Path:
    """An upstream release as it is laid out (flat, transcript plain), where it may also be put by hand."""
    downloads.mkdir(parents=True)
    tarball = downloads / "asterisk-core-sounds-en-g722-1.6.1.tar.gz"
    subprocess.run(["tar", "czf", tarball, "-C", folder, "."], check=True)
    sha256 = hashlib.sha256(tarball.read_bytes()).hexdigest()
    monkeypatch.setitem(voices.SOURCES, "en", replace(voices.SOURCES["en"], tarball_sha256=sha256))
    return tarball


# --- prompts ---


def test_every_file_has_its_committed_sum(source):
    sums = fetch.read_sums(voices.SOURCES["en"].sums)
    assert len(sums) == 569 and fetch.verify(source, sums) == []
    assert {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()} == set(sums)
    subprocess.run(["sha256sum", "--check", "--quiet", Path(recipe.__file__).parent / "prompts.en.sha256"], cwd=source, check=True)


def test_rows_add_up(prompts):
    assert prompts.notes["rows"] == 569
    assert sum(prompts.clips.values()) + len(prompts.set_aside) + prompts.notes["beyond_limit"] == 569
    kinds = Counter(row.reason.partition(":")[0] for row in prompts.set_aside)
    assert kinds == {
        "the transcript marks a tone or a sign, not just speech": 14,
        "the transcript has no words once it is normalised": 12,
        "longer than max_seconds 30": 3,
        "the transcript has a row, but there is no recording": 1,
    }
    ids = [cut.id for cuts in prompts.cuts.values() for cut in cuts] + [row.id for row in prompts.set_aside]
    assert len(set(ids)) == 569 and all(id.startswith("en/") for id in ids)


def test_splits_have_the_promised_sizes(prompts):
    assert prompts.clips == {"train": 360, "dev": 52, "test": 127}
    assert 100 <= prompts.clips["test"] <= 130


def test_no_text_of_test_is_trained_on(prompts):
    texts = {split: {ENGLISH(cut.supervisions[0].text) for cut in cuts} for split, cuts in prompts.cuts.items()}
    assert not texts["test"] & (texts["train"] | texts["dev"]) and not texts["dev"] & texts["train"]
    assert prompts.notes["dropped_for_test_text"] == 0
    repeated = Counter(ENGLISH(cut.supervisions[0].text) for cuts in prompts.cuts.values() for cut in cuts)
    assert sum(n > 1 for n in repeated.values()) > 10  # or the rule would have had nothing to do


def test_overlap_is_seen_where_there_is_one(prompts):
    """The negative control of the count of zero."""
    cuts = [cut for split in corpora.SPLITS for cut in prompts.cuts[split]]
    assert base.overlap(cuts, ENGLISH) == set()
    tested = prompts.cuts["test"][0]
    twin = base.clip("twin", "x", 16, tested.supervisions[0].text.upper() + "!", "s", "en", "train", "")
    assert base.overlap([*cuts, twin], ENGLISH) == {"twin"}


@settings(max_examples=50, deadline=None)
@given(st.text("abc xyz", min_size=1))
def test_equal_texts_share_a_split(text):
    assert recipe.split_of(text) == recipe.split_of(f"  {text.upper()}!") in corpora.SPLITS


def test_cuts_are_what_they_promise(prompts):
    for split, cuts in prompts.cuts.items():
        assert [cut.id for cut in cuts] == sorted(cut.id for cut in cuts)
        for cut in cuts:
            (said,) = cut.supervisions
            assert (said.speaker, said.language, cut.custom["split"]) == ("allison", "en", split)
            assert said.text and 0.3 < cut.duration <= 30 and cut.recording.sampling_rate == 16_000
            assert cut.duration == said.duration == cut.recording.num_samples / 16_000
    assert 0.35 < sum(prompts.seconds.values()) / 3600 < 0.37
    assert "CC BY-SA 3.0" in prompts.licence and "Allison Smith" in prompts.attribution and "Digium" in prompts.attribution


def test_flac_holds_what_g722_decodes_to(prompts, source):
    """Two samples a byte (ITU-T G.722 at 64 kbit/s), and lossless from there."""
    for cut in prompts.cuts["dev"]:
        path = source / f"{cut.id.removeprefix('en/')}.g722"
        wave_N = corpora.load_audio(cut)
        assert wave_N.dtype == np.float32 and len(wave_N) == 2 * path.stat().st_size
        assert np.array_equal(wave_N, audio.decode(path, "g722"))


def test_lhotse_reads_the_same_samples(prompts):
    cut = prompts.cuts["test"][0]
    assert np.array_equal(cut.load_audio()[0], corpora.load_audio(cut))


def test_load_audio_gives_a_part(prompts):
    cut = next(cut for cut in prompts.cuts["test"] if cut.duration > 2)
    part = cut.truncate(offset=0.5, duration=1.0)
    assert np.array_equal(corpora.load_audio(part), corpora.load_audio(cut)[8_000:24_000])


def test_manifest_names_the_samples_and_hashes(prompts):
    rows = [json.loads(line) for line in prompts.manifest]
    assert len(rows) == sum(prompts.clips.values())
    assert set(rows[0]) == {"id", "split", "duration", "text", "speaker", "language", "audio"}
    assert hashlib.sha256("".join(f"{line}\n" for line in prompts.manifest).encode()).hexdigest() == prompts.manifest_sha256
    assert prompts.manifest_sha256.startswith("ee8d511fc652a850"), "the corpus has changed: is that meant? then RULES changes too"
    cut = prompts.cuts["train"][0]
    assert rows[0]["id"] == cut.id and rows[0]["audio"] == "pcm-sha256:" + audio.pcm_sha256(corpora.load_audio(cut))


def test_limit_takes_the_same_sample_of_each_split(prompts):
    small, smaller = corpora.prepare("prompts", limit=20), corpora.prepare("prompts", limit=5)
    assert small.clips == {"train": 20, "dev": 20, "test": 20}
    for split in corpora.SPLITS:
        ids = [{cut.id for cut in corpus.cuts[split]} for corpus in (smaller, small, prompts)]
        assert ids[0] < ids[1] < ids[2]
        assert len({id[:4] for id in ids[1]}) > 5  # a sample, not the head of the alphabet
    assert small.manifest_sha256 != smaller.manifest_sha256 != prompts.manifest_sha256
    assert sum(small.clips.values()) + len(small.set_aside) + small.notes["beyond_limit"] == 569


def test_max_seconds_sets_aside_with_the_reason(prompts):
    short = corpora.prepare("prompts", max_seconds=2.0)
    long = [row for row in short.set_aside if "longer than max_seconds 2" in row.reason]
    assert len(long) > 100 and sum(short.clips.values()) + len(short.set_aside) == 569
    assert all(cut.duration <= 2 for cuts in short.cuts.values() for cut in cuts)
    with pytest.raises(InputError, match="split of prompts is empty"):
        corpora.prepare("prompts", max_seconds=0.1)


def test_a_second_call_does_no_work(prompts, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_OFFLINE", "1")
    monkeypatch.setattr(recipe, "build", lambda *a: pytest.fail("built again"))
    monkeypatch.setattr(audio, "decode", lambda *a, **k: pytest.fail("decoded again"))
    again = corpora.prepare("prompts")
    assert again.manifest_sha256 == prompts.manifest_sha256 and again.set_aside == prompts.set_aside


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("[beep]", "tone"),
        ("at [@]", "tone"),
        ("(1 second of silence)", "no words"),
        ("...", "no words"),
        ("Please hold: now.", ""),
    ],
)
def test_unusable_rows(text, reason):
    assert (reason in recipe.unusable(text)) if reason else recipe.unusable(text) == ""


def test_transcript_with_bom_comments_and_colons():
    text = "\ufeff; Sounds\r\n\r\nhello: Hello: you.\r\nnone:\r\nodd\r\n"
    assert recipe.read_transcript(text) == [("hello", "Hello: you."), ("none", ""), ("odd", "")]


def test_bad_rows_are_set_aside_and_the_rest_goes_on(source, tmp_path):
    """A small copy with every fault a row can have."""
    (tmp_path / "core-sounds-en.txt").write_text("\ufeff; x\nadded: Added.\nempty:\ngone: Gone.\nmute: Mute.\nbeep: [beep]\n", "utf-8")
    for name, data in {"added": (source / "added.g722").read_bytes(), "empty": b"12", "mute": b"", "extra": b"1"}.items():
        (tmp_path / f"{name}.g722").write_bytes(data)
    cuts, set_aside, notes = recipe.build(tmp_path, tmp_path / "out", voices.SOURCES["en"])
    assert [cut.id for cut in cuts] == ["en/added"]
    reasons = {row.id: row.reason for row in set_aside}
    assert "0 bytes" in reasons["en/mute"] and "no recording" in reasons["en/gone"] and "empty" in reasons["en/empty"]
    assert len(cuts) + len(set_aside) == notes["rows"] == 5 and notes["recordings_without_text"] == 1


def test_a_root_of_ones_own_is_checked(small, empty_cache):
    assert sum(corpora.prepare("prompts", root=small).clips.values()) > 40
    (small / "activated.g722").write_bytes(b"?")
    (small / "letters/a.g722").unlink()
    with pytest.raises(InputError, match="2 files are missing or differ") as e:
        corpora.prepare("prompts", root=small)
    assert "activated.g722: got" in str(e.value) and "letters/a.g722: missing" in str(e.value)


def test_damaged_audio_in_the_cache_is_seen(small, empty_cache):
    corpus = corpora.prepare("prompts", root=small)
    first, second = corpus.cuts["test"][0], corpus.cuts["test"][1]
    path = Path(first.recording.sources[0].source)
    wave_N = audio.decode(path)
    wave_N[1000] += 0.01
    audio.save_flac(path, wave_N)
    with pytest.raises(InputError, match="other samples") as e:
        corpora.load_audio(first)
    assert "prepare the corpus again" in str(e.value)
    shutil.copy(second.recording.sources[0].source, path)
    with pytest.raises(InputError, match="another duration"):
        corpora.load_audio(first)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        corpora.load_audio(first)
    healed = corpora.prepare("prompts", root=small)  # a file is gone: made again
    assert healed.manifest_sha256 == corpus.manifest_sha256 and len(corpora.load_audio(healed.cuts["test"][0])) == len(wave_N)


def test_upstream_release_gives_the_same_corpus(small, empty_cache, monkeypatch):
    release(small, empty_cache / "downloads", monkeypatch)
    fetched = corpora.prepare("prompts")
    shutil.rmtree(empty_cache / "corpora")
    assert corpora.prepare("prompts", root=small).manifest_sha256 == fetched.manifest_sha256


@pytest.mark.slow
def test_upstream_release_gives_the_whole_corpus(prompts, source, empty_cache, monkeypatch):
    release(source, empty_cache / "downloads", monkeypatch)
    assert corpora.prepare("prompts").manifest_sha256 == prompts.manifest_sha256


def test_another_release_is_refused_file_by_file(small, empty_cache, monkeypatch):
    good = (small / "activated.g722").read_bytes()
    (small / "activated.g722").write_bytes(b"other")
    release(small, empty_cache / "downloads", monkeypatch)
    with pytest.raises(InputError, match="1 files are missing or differ") as e:
        corpora.prepare("prompts")
    assert "activated.g722: got" in str(e.value)
    assert not (empty_cache / "corpora/prompts/en/source").exists()
    (small / "activated.g722").write_bytes(good)
    shutil.rmtree(empty_cache / "downloads")
    release(small, empty_cache / "downloads", monkeypatch)
    assert corpora.prepare("prompts").clips["test"] > 0


def test_no_network_and_an_empty_cache(empty_cache):
    with pytest.raises(fetch.FetchError) as e:
        corpora.prepare("prompts")
    said = str(e.value)
    for part in (
        "The prompts could not be fetched",
        "apt-get download: SPEECHLAB_OFFLINE",
        "downloads.asterisk.org",
        str(empty_cache / "downloads"),
        "asterisk-core-sounds-en-g722_1.6.1-1_all.deb",
        "asterisk-core-sounds-en-g722-1.6.1.tar.gz",
        "corpus's root",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"name": "prompt"},
            'Unknown corpus "prompt".*did you mean "prompts".*known: commonvoice, coraal, fleurs, librispeech, own, prompts',
        ),
        ({"name": "prompts", "language": "de"}, 'not there in "de".*known: en, es, fr, it, ru'),
        ({"name": "prompts", "max_seconds": 0}, "corpus.max_seconds: got 0 .*greater than 0"),
        ({"name": "prompts", "limit": 0}, "corpus.limit: got 0 .*greater than or equal to 1"),
        ({"name": "prompts", "root": "/nowhere"}, "/nowhere does not hold the prompts: 569 files"),
        ({"name": "librispeech"}, "needs a root.*openslr.org/12"),
        ({"name": "librispeech", "root": "/nowhere"}, "does not exist.*/nowhere.*openslr.org/12"),
        ({"name": "librispeech", "language": "de"}, 'not there in "de"'),
    ],
)
def test_what_cannot_be_prepared_says_why(arguments, says):
    with pytest.raises(InputError, match=f"(?s){says}"):
        corpora.prepare(**arguments)


# --- librispeech ---


@pytest.fixture
def libri(prompts, tmp_path) -> Path:
    """LibriSpeech's layout with real speech: 4 chapters of 3 clips, by 3 made-up readers."""
    chapters = [("train-clean-100", "19/198"), ("train-clean-360", "26/495"), ("dev-clean", "84/121"), ("test-clean", "61/701")]
    cuts = iter(prompts.cuts["train"])
    for part, chapter in chapters:
        folder = tmp_path / "LibriSpeech" / part / chapter
        folder.mkdir(parents=True)
        lines = []
        for number, cut in zip(range(3), cuts, strict=False):
            id = f"{chapter.replace('/', '-')}-{number:04d}"
            shutil.copy(cut.recording.sources[0].source, folder / f"{id}.flac")
            lines.append(f"{id} {cut.supervisions[0].text.upper()}\n")
        (folder / f"{chapter.replace('/', '-')}.trans.txt").write_text("".join(lines))
    return tmp_path / "LibriSpeech"


def test_librispeech_layout(libri, empty_cache):
    corpus = corpora.prepare("librispeech", root=libri)
    assert corpus.clips == {"train": 6, "dev": 3, "test": 3} and not corpus.set_aside
    assert [cut.id for cut in corpus.cuts["test"]] == ["61-701-0000", "61-701-0001", "61-701-0002"]
    assert {cut.supervisions[0].speaker for cut in corpus.cuts["train"]} == {"19", "26"}
    cut = corpus.cuts["train"][0]
    wave_N = corpora.load_audio(cut)
    assert len(wave_N) == cut.recording.num_samples and cut.supervisions[0].text.isupper() and cut.supervisions[0].language == "en"
    digest = hashlib.md5(audio.quantise(wave_N).astype("<i2").tobytes()).hexdigest()
    assert cut.custom["audio"] == f"flac-md5:{digest}"
    assert "CC BY 4.0" in corpus.licence and "Panayotov" in corpus.attribution
    assert corpora.prepare("librispeech", root=libri.parent).manifest_sha256 == corpus.manifest_sha256  # the folder above does too


def test_librispeech_sets_bad_rows_aside(libri, empty_cache):
    before = corpora.prepare("librispeech", root=libri)
    chapter = libri / "train-clean-100/19/198"
    texts = chapter / "19-198.trans.txt"
    tested = before.cuts["test"][0].supervisions[0].text
    texts.write_text(texts.read_text() + f"19-198-0003\n19-198-0004 GONE\n19-198-0005 BROKEN\n19-198-0006 {tested}\n\n")
    (chapter / "19-198-0005.flac").write_bytes(b"fLaC" + bytes(10))
    shutil.copy(chapter / "19-198-0000.flac", chapter / "19-198-0006.flac")
    corpus = corpora.prepare("librispeech", root=libri)  # seen, because the transcript has changed
    reasons = {row.id: row.reason for row in corpus.set_aside}
    assert "empty" in reasons["19-198-0003"] and "no recording" in reasons["19-198-0004"] and "unreadable" in reasons["19-198-0005"]
    assert sum(corpus.clips.values()) + len(corpus.set_aside) == corpus.notes["rows"] == 16
    assert corpus.notes["shared_with_test_text"] == 1
    assert corpus.manifest_sha256 != before.manifest_sha256


def test_librispeech_without_a_part_says_which(libri, empty_cache):
    shutil.rmtree(libri / "dev-clean")
    with pytest.raises(InputError, match="without dev-clean"):
        corpora.prepare("librispeech", root=libri)
    shutil.rmtree(libri / "train-clean-100")
    shutil.rmtree(libri / "train-clean-360")
    with pytest.raises(InputError, match=r"without dev-clean, train-\*"):
        corpora.prepare("librispeech", root=libri)


def test_kept_cuts_are_relative_to_their_folder(prompts):
    """A cache that moves stays good."""
    folder = Path(prompts.cuts["test"][0].recording.sources[0].source)
    while folder.name != "audio":
        folder = folder.parent
    with gzip.open(folder.parent / "cuts.jsonl.gz", "rt") as f:
        assert json.loads(next(f))["recording"]["sources"][0]["source"].startswith("audio/")


def test_importing_corpora_is_cheap():
    code = "import sys, speechlab.corpora; sys.exit(bool({'torch', 'lhotse', 'ray', 'transformers', 'rich'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_several_languages_are_joined_and_each_clip_keeps_its_split(prompts):
    italian, both = corpora.prepare("prompts", language="it"), corpora.prepare("prompts", language="en, it")
    for split in corpora.SPLITS:
        assert sorted(c.id for c in both.cuts[split]) == sorted([c.id for c in prompts.cuts[split]] + [c.id for c in italian.cuts[split]])
    assert len(both.set_aside) == len(prompts.set_aside) + len(italian.set_aside)
    assert both.language == "en,it"
    assert both.manifest_sha256 not in (prompts.manifest_sha256, italian.manifest_sha256)
    assert both.manifest_sha256 == corpora.prepare("prompts", language="it,en").manifest_sha256, "whatever their order"
    with pytest.raises(InputError, match=r"same id[\s\S]*en/"):
        corpora.prepare("prompts", language="en,en")
