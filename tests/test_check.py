"""The corpus check on real speech and on sixty ways in which a clip goes wrong, all through the reader, in one corpus."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import audio, corpora, vad
from speechlab.config import corpus_section
from speechlab.corpora import base, build, check
from speechlab.corpora.base import Entry
from speechlab.corpora.check import ACCEPTED, REPAIRED, SET_ASIDE, Finding, Judge, inspect
from speechlab.errors import InputError
from speechlab.measures import Measures

RATE = 16_000


@dataclass
class Place:
    """Where a case puts its files, with speech that no other case has."""

    folder: Path
    name: str
    speech: np.ndarray
    text: str
    rows: list[Any] = field(default_factory=list)

    def wav(self, wave, rate=RATE, suffix="wav", **more) -> str:
        path = self.folder / f"{self.name}.{suffix}"
        soundfile.write(path, wave, rate, **{"format": "WAV", "subtype": "PCM_16"} | more)
        return path.name

    def raw(self, data: bytes, suffix="wav") -> str:
        path = self.folder / f"{self.name}.{suffix}"
        path.write_bytes(data)
        return path.name

    def row(self, file: str, **more) -> None:
        known = {"audio_filepath": file, "text": self.text, "id": self.name, "speaker": f"speaker {self.name}"}
        self.rows.append({k: v for k, v in (known | more).items() if v is not ...})

    @property
    def seconds(self) -> float:
        return len(self.speech) / RATE


def encoded(wave: np.ndarray, codec: str, container: str, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as sink:
        stream = sink.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(audio.quantise(wave)[None], format="s16p" if codec == "libmp3lame" else "s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            sink.mux(packet)
    return out.getvalue()


CASES: dict[str, tuple[Callable[[Place], None], str, str]] = {}  # name to (what it does, verdict, what the finding says)


def case(verdict: str, says: str = ""):
    def keep(make: Callable[[Place], None]) -> Callable[[Place], None]:
        CASES[make.__name__] = make, verdict, says
        return make

    return keep


# --- files that are no whole audio ---


@case(SET_ASIDE, "empty")
def zero_bytes(p):
    p.row(p.raw(b""))


@case(SET_ASIDE, "no samples")
def header_only(p):
    p.wav(p.speech[:0])
    p.row(f"{p.name}.wav")


@case(SET_ASIDE, "another duration than the corpus says")
def truncated_wav(p):
    data = (p.folder / p.wav(p.speech)).read_bytes()
    p.row(p.raw(data[: len(data) // 2]), duration=p.seconds)


@case(SET_ASIDE, "another duration than the corpus says")
def truncated_mp3(p):
    data = audio.encode_mp3(p.speech)
    p.row(p.raw(data[: len(data) // 2], "mp3"), duration=p.seconds)


@case(SET_ASIDE, "another duration than the corpus says")
def truncated_opus(p):
    data = encoded(p.speech, "libopus", "ogg")
    p.row(p.raw(data[: len(data) // 2], "opus"), duration=p.seconds)


@case(SET_ASIDE, "cannot be decoded|damaged|another duration|error")
def truncated_flac(p):
    data = (p.folder / p.wav(p.speech, suffix="flac", format="FLAC")).read_bytes()
    p.row(p.raw(data[: len(data) // 2], "flac"), duration=p.seconds)


@case(SET_ASIDE, "cannot be decoded|damaged|error|another duration")
def flac_with_a_flipped_byte(p):
    data = bytearray((p.folder / p.wav(p.speech, suffix="flac", format="FLAC")).read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 40):
        data[at] ^= 0xFF
    p.row(p.raw(bytes(data), "flac"), duration=p.seconds)


@case(SET_ASIDE, "cannot be decoded|no audio|not audio")
def a_text_named_wav(p):
    p.row(p.raw(b"this is not audio\n" * 100))


@case(SET_ASIDE, "cannot be decoded|no audio|not audio")
def an_error_page_named_mp3(p):
    p.row(p.raw(b"<!doctype html><html><body><h1>404</h1></body></html>" * 20, "mp3"))


@case(SET_ASIDE, "cannot be decoded|no audio|not audio")
def a_picture_named_wav(p):
    p.row(p.raw(b"\x89PNG\r\n\x1a\n" + bytes(2000)))


@case(SET_ASIDE, "cannot be decoded|no audio|not audio")
def random_bytes(p):
    p.row(p.raw(np.random.default_rng(0).bytes(50_000), "ogg"))


@case(SET_ASIDE, "cannot be decoded|no audio|not audio")
def a_playlist_named_mp3(p):
    p.row(p.raw(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{p.folder}/secret.wav\n#EXT-X-ENDLIST\n".encode(), "mp3"))


@case(SET_ASIDE, "cannot be decoded|no audio|not audio")
def a_concat_list_named_wav(p):
    p.row(p.raw(f"ffconcat version 1.0\nfile '{p.folder}/secret.wav'\n".encode()))


@case(SET_ASIDE, "cannot be decoded|channels|rate|header")
def a_header_with_65535_channels(p):
    data = bytearray((p.folder / p.wav(p.speech)).read_bytes())
    data[22:24] = b"\xff\xff"
    p.row(p.raw(bytes(data)))


@case(SET_ASIDE, "cannot be decoded|rate|header")
def a_header_with_rate_zero(p):
    data = bytearray((p.folder / p.wav(p.speech)).read_bytes())
    data[24:28] = bytes(4)
    p.row(p.raw(bytes(data)))


@case(SET_ASIDE, "regular file|no file|not a file|is not")
def a_pipe_that_nobody_writes_to(p):
    os.mkfifo(p.folder / f"{p.name}.wav")
    p.row(f"{p.name}.wav")


@case(SET_ASIDE, "regular file|no file|not a file|folder|directory|is not")
def a_folder_named_wav(p):
    (p.folder / f"{p.name}.wav").mkdir()
    p.row(f"{p.name}.wav")


@case(SET_ASIDE, "regular file|device|not a file|is not|leaves|outside|escape")
def a_device(p):
    p.row("/dev/zero")


@case(SET_ASIDE, "no audio file")
def a_missing_file(p):
    p.row("gone.wav")


@case(SET_ASIDE, "root|outside|leaves|\\.\\.")
def a_path_out_of_the_root(p):
    (p.folder.parent / "outside.wav").write_bytes((p.folder / p.wav(p.speech)).read_bytes())
    p.row("../outside.wav")


@case(SET_ASIDE, "root|outside|leaves|link")
def a_link_out_of_the_root(p):
    (p.folder.parent / "linked.wav").write_bytes((p.folder / p.wav(p.speech, suffix="tmp")).read_bytes())
    (p.folder / f"{p.name}.wav").symlink_to(p.folder.parent / "linked.wav")
    p.row(f"{p.name}.wav")


# --- samples ---


@case(SET_ASIDE, "NaN or infinite")
def nan_samples(p):
    wave = p.speech.copy()
    wave[1000:1003] = np.nan
    p.row(p.wav(wave, subtype="FLOAT"))


@case(SET_ASIDE, "NaN or infinite")
def infinite_samples(p):
    wave = p.speech.copy()
    wave[500] = np.inf
    p.row(p.wav(wave, subtype="FLOAT"))


@case(SET_ASIDE, "silence")
def digital_silence(p):
    p.row(p.wav(np.zeros(2 * RATE)))


@case(SET_ASIDE, "silence")
def dither_alone(p):
    p.row(p.wav(np.random.default_rng(0).choice([-1, 0, 1], 2 * RATE) / 32768))


@case(SET_ASIDE, "too short|fewer|no samples")
def one_sample(p):
    p.row(p.wav(p.speech[4000:4001]))


@case(SET_ASIDE, "too short")
def fifty_milliseconds(p):
    p.row(p.wav(p.speech[4000:4800]))


@case(SET_ASIDE, "longer than max_seconds 30: 4")
def forty_seconds(p):
    p.row(p.wav(np.tile(p.speech, math.ceil(41 * RATE / len(p.speech)))))


@case(REPAIRED, "DC offset of \\+0.100")
def a_dc_offset(p):
    p.row(p.wav(p.speech * 0.5 + 0.1))


@case(REPAIRED, "scaled down from a peak of 2")
def floats_beyond_full_scale(p):
    p.row(p.wav(p.speech / np.abs(p.speech).max() * 2.5, subtype="FLOAT"))


@case(REPAIRED, "channels cancel")
def channels_in_opposite_phase(p):
    p.row(p.wav(np.stack([p.speech, -p.speech], 1)))


@case(ACCEPTED, "clipped")
def a_clipped_input(p):
    p.row(p.wav(np.clip(p.speech * 4, -1, 1)))


@case(ACCEPTED, "clipped")
def clipped_and_turned_down(p):
    p.row(p.wav(0.6 * np.clip(p.speech * 4, -1, 1)))


@case(ACCEPTED, "noisy")
def noise_at_0_db(p):
    p.row(p.wav(audio.add_noise(0.3 * p.speech, 0, 1)))


@case(ACCEPTED, "quiet")
def speech_at_minus_60(p):
    p.row(p.wav(p.speech * 1e-3, subtype="PCM_24"))


@case(ACCEPTED, "narrow_band")
def telephone_speech_at_16_khz(p):
    p.row(p.wav(soxr.resample(soxr.resample(p.speech, RATE, 8000), 8000, RATE)))


@case(ACCEPTED, "little_speech")
def a_tone(p):
    p.row(p.wav(0.3 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)))


@case(ACCEPTED, "little_speech")
def speech_and_much_silence(p):
    p.row(p.wav(np.concatenate([p.speech[: 2 * RATE], 1e-4 * np.random.default_rng(0).standard_normal(26 * RATE)])))


@case(SET_ASIDE, "same samples")
def the_same_in_another_container(p):
    p.row(p.wav(p.speech), id="a-first")
    p.row(p.wav(p.speech, suffix="flac", format="FLAC"), id="b-second")


@case(SET_ASIDE, "same samples")
def the_same_with_another_text(p):
    p.row(p.wav(p.speech), id="c-first")
    p.row(p.wav(p.speech, suffix="copy.wav"), id="d-second", text="quite another text")


# --- names and containers that are right after all ---


@case(ACCEPTED)
def flac_named_wav(p):
    p.row(p.wav(p.speech, format="FLAC"))


@case(ACCEPTED)
def mp3_named_wav(p):
    p.row(p.raw(audio.encode_mp3(p.speech)))


@case(ACCEPTED)
def stereo_with_a_silent_channel(p):
    p.row(p.wav(np.stack([p.speech, 0 * p.speech], 1)))


@case(ACCEPTED)
def eight_kilohertz(p):
    p.row(p.wav(soxr.resample(p.speech, RATE, 8000), 8000))


@case(ACCEPTED)
def a_wav_that_was_streamed(p):
    data = bytearray((p.folder / p.wav(p.speech)).read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    p.row(p.raw(bytes(data)), duration=p.seconds)


@case(ACCEPTED)
def an_id_that_climbs(p):
    p.row(p.wav(p.speech[:-7]), id="../../etc/passwd")


@case(ACCEPTED)
def a_name_with_spaces_and_quotes(p):
    path = p.folder / 'it\'s a "name" <b>.wav'
    soundfile.write(path, p.speech, RATE, subtype="PCM_16")
    p.row(path.name)


# --- rows ---


@case(SET_ASIDE, "duration")
def a_negative_duration(p):
    p.row(p.wav(p.speech), duration=-1.0)


@case(SET_ASIDE, "duration")
def a_duration_that_is_no_number(p):
    p.row(p.wav(p.speech), duration=float("nan"))


@case(SET_ASIDE, "duration")
def a_duration_in_words(p):
    p.row(p.wav(p.speech), duration="three seconds")


@case(SET_ASIDE, "another duration than the corpus says")
def a_duration_that_is_too_short(p):
    p.row(p.wav(p.speech), duration=p.seconds / 2)


@case(SET_ASIDE, "id")
def an_id_twice(p):
    p.row(p.wav(p.speech), id="e-twice")
    p.row(p.wav(p.speech[: -RATE // 2], suffix="other.wav"), id="e-twice")


@case(SET_ASIDE, "empty")
def an_empty_text(p):
    p.row(p.wav(p.speech), text="")


@case(SET_ASIDE, "empty")
def a_blank_text(p):
    p.row(p.wav(p.speech), text=" \t\u3000 ")


@case(SET_ASIDE, "no words")
def punctuation_alone(p):
    p.row(p.wav(p.speech), text="... !? --")


@case(SET_ASIDE, "text|transcript")
def a_number_for_a_text(p):
    p.row(p.wav(p.speech), text=42)


@case(SET_ASIDE, "text|transcript")
def no_text_at_all(p):
    p.row(p.wav(p.speech), text=...)


@case(REPAIRED, "cannot be seen")
def a_nul_in_the_text(p):
    p.row(p.wav(p.speech), text="zero\x00byte")


@case(REPAIRED, "cannot be seen")
def a_byte_order_mark_in_the_text(p):
    p.row(p.wav(p.speech), text="\ufeffhello \u200bthere")


@case(REPAIRED, "cannot be seen")
def a_direction_override_in_the_text(p):
    p.row(p.wav(p.speech), text="right\u202eleft")


@case(REPAIRED, "NFC")
def a_decomposed_text(p):
    p.row(p.wav(p.speech), text=unicodedata.normalize("NFD", "déjà vu à Zürich"))


@case(ACCEPTED, "ctc")
def a_text_that_no_ctc_can_align(p):
    p.row(p.wav(p.speech[: RATE // 2]), text="many words in half a second " * 10)


@case(ACCEPTED, "speaking_rate")
def a_text_that_is_far_too_short(p):
    p.row(p.wav(np.tile(p.speech, 30)[: 25 * RATE]), text="no")


@case(SET_ASIDE, "UTF-8")
def latin_1_in_the_manifest(p):
    p.rows.append(json.dumps({"audio_filepath": p.wav(p.speech), "text": "déjà", "id": p.name}, ensure_ascii=False).encode("latin-1"))


@case(SET_ASIDE, "JSON")
def a_line_that_is_no_json(p):
    p.rows.append(b'{"audio_filepath": "x.wav", "text": "cut o')


@case(SET_ASIDE, "object|JSON")
def a_line_that_is_a_list(p):
    p.rows.append(b'["x.wav", "text"]')


@pytest.fixture(scope="session")
def bad(prompts, tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    """A NeMo manifest of every case and forty good clips, and the lines that each case wrote."""
    folder = tmp_path_factory.mktemp("bad") / "corpus"
    folder.mkdir()
    cuts = [c for c in prompts.cuts["train"] if 2.0 < c.duration < 9.0]
    soundfile.write(folder / "secret.wav", corpora.load_audio(cuts[-1]), RATE)
    lines, wrote = [], {}
    for cut, (name, (make, _, _)) in zip(cuts, CASES.items(), strict=False):
        place = Place(folder, name, corpora.load_audio(cut), cut.supervisions[0].text)
        make(place)
        wrote[name] = list(range(len(lines), len(lines) + len(place.rows)))
        lines += [row if isinstance(row, bytes) else json.dumps(row).encode() for row in place.rows]
    for cut in cuts[len(CASES) : len(CASES) + 40]:
        shutil.copy(cut.recording.sources[0].source, folder / f"good-{len(lines)}.flac")
        row = {"audio_filepath": f"good-{len(lines)}.flac", "duration": cut.duration, "text": cut.supervisions[0].text, "id": cut.id}
        lines.append(json.dumps(row).encode())
    assert len(wrote) == len(CASES), "a clip for each case"
    (folder / "manifest.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder, wrote


@pytest.fixture(scope="session")
def findings(bad, tmp_path_factory) -> list[Finding]:
    folder, _ = bad
    config = corpus_section(name="own", root=str(folder))
    entries, _, _ = corpora.entries(config)
    return [f for _, f in build.examine(entries, config, folder=tmp_path_factory.mktemp("kept"))]


def test_there_are_over_fifty_cases_and_every_row_has_one_finding(bad, findings):
    folder, wrote = bad
    assert len(CASES) >= 60
    rows = len((folder / "manifest.jsonl").read_bytes().splitlines())
    assert len(findings) == rows
    assert {f.verdict for f in findings} == set(check.VERDICTS)
    total = check.counts(f.row() for f in findings)
    assert sum(total["verdict"].values()) == rows
    assert sum(total["why"].values()) == total["verdict"][SET_ASIDE]
    good = findings[-40:]
    assert [f.verdict for f in good] == [ACCEPTED] * 40  # the negative control: the check does not cry wolf
    assert [f.why for f in good] == [""] * 40


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_a_bad_clip(name, bad, findings):
    _, verdict, says = CASES[name]
    rows = [findings[i] for i in bad[1][name]]
    # of a pair one stays; which one is the split's to say, and the split follows from the text
    finding = next((f for f in reversed(rows) if f.verdict == verdict), rows[-1])
    assert finding.verdict == verdict, finding
    told = " ".join([finding.why, *finding.repairs, *finding.remarks])
    assert re.search(says, told), told
    if verdict != SET_ASIDE:
        assert finding.why == ""
        assert finding.digest.startswith("pcm-sha256:")
    assert (finding.verdict == REPAIRED) == bool(finding.repairs) or verdict == SET_ASIDE


def test_findings_are_a_file_to_be_filtered_and_read_back(findings, tmp_path):
    build.write_findings(tmp_path / "findings.jsonl", (f.row() for f in findings))
    rows = [json.loads(line) for line in (tmp_path / "findings.jsonl").read_text("utf-8").splitlines()]
    assert Counter(r["verdict"] for r in rows) == Counter(f.verdict for f in findings)
    # NaN is no JSON: what was not measured is null, and comes back as NaN
    again = [Finding.of(row) for row in rows]
    assert list(map(repr, again)) == list(map(repr, findings))


def test_the_command_checks_a_folder_and_prints_its_file(bad, tmp_path):
    folder, _ = bad
    command = [str(Path(sys.executable).parent / "speechlab"), "corpus", "check", str(folder), "--out", str(tmp_path / "f.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("f.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text("utf-8").splitlines()]
    assert f"{len(rows)}" in done.stdout.split("in all")[1]


# --- what one clip says ---


def clip_of(prompts, at=0) -> tuple[Path, Any]:
    cut = [c for c in prompts.cuts["train"] if 2.0 < c.duration < 9.0][at]
    return Path(cut.recording.sources[0].source), cut


def test_remarks_set_aside_what_they_are_told_to(prompts):
    path, cut = clip_of(prompts)
    entry = Entry("x", path, cut.supervisions[0].text, duration=cut.duration + 1)
    assert inspect(entry, corpus_section())[0].verdict == SET_ASIDE  # truncated, by default
    kept, wave_N = inspect(entry, corpus_section(check={"set_aside": []}))
    assert (kept.verdict, kept.remarks) == (ACCEPTED, ("truncated",))
    assert len(wave_N) == round(cut.duration * RATE)
    quiet, none = inspect(replace(entry, duration=None), corpus_section(check={"set_aside": ["quiet"], "min_level": -1.0}))
    assert (quiet.verdict, quiet.why, none) == (SET_ASIDE, "remarked: quiet", None)


def test_an_alphabet_is_a_limit_if_given(prompts):
    path, cut = clip_of(prompts)
    entry = Entry("x", path, "naïve")
    assert inspect(entry, corpus_section())[0].remarks == ()
    assert inspect(entry, corpus_section(check={"alphabet": "abcdefghijklmnopqrstuvwxyz '"}))[0].remarks == ("characters",)


def test_a_part_of_a_file_is_a_clip(prompts):
    path, cut = clip_of(prompts)
    finding, wave_N = inspect(Entry("x", path, "some words", start=0.5, duration=1.25), corpus_section())
    assert finding.verdict == ACCEPTED
    assert np.array_equal(wave_N, corpora.load_audio(cut)[8_000:28_000])
    beyond, _ = inspect(Entry("x", path, "some words", start=cut.duration - 0.5, duration=1.25), corpus_section())
    assert beyond.verdict == SET_ASIDE


@given(st.text(max_size=60))
def test_clean_text_is_clean_once(text):
    cleaned, _ = check.clean(text)
    again, repairs = check.clean(cleaned)
    assert (again, repairs) == (cleaned, [])
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in cleaned if c not in "\u200c\u200d")


@given(st.text("aab ", min_size=1, max_size=12))
def test_ctc_frames_are_the_fewest_that_torch_accepts(text):
    import torch

    ids = torch.tensor([[{"a": 1, "b": 2, " ": 3}[c] for c in text]])

    def loss(frames: int) -> float:
        logits = torch.zeros(frames, 1, 4).log_softmax(-1)
        return torch.nn.functional.ctc_loss(logits, ids, torch.tensor([frames]), torch.tensor([len(text)]), reduction="sum").item()

    assert math.isfinite(loss(check.ctc_frames(text)))
    assert check.ctc_frames(text) == 1 or math.isinf(loss(check.ctc_frames(text) - 1))


# --- what only the whole corpus says ---


def made(id: str, split: str, digest: str = "", text: str = "some words here", speaker: str = "", seconds: float = 2.0) -> Finding:
    measures = Measures(seconds, 0.5, 0.0, 0.0, -20.0, 40.0, 7000, seconds)
    digest = base.PCM + (digest or id).encode().hex().zfill(64)
    return Finding(id, ACCEPTED, text=text, speaker=speaker, language="en", split=split, measures=measures, digest=digest)


def judged(*findings: Finding, **limits) -> dict[str, Finding]:
    judge = Judge(corpus_section(check=limits))
    for finding in findings:
        judge.show(finding)
    return {f.id: judge.verdict(f) for f in findings}


def test_of_equal_samples_the_one_tested_on_stays():
    out = judged(made("a", "train", "same"), made("b", "dev", "same"), made("c", "test", "same"), made("d", "train", "other"))
    assert {id: f.verdict for id, f in out.items()} == {"a": SET_ASIDE, "b": SET_ASIDE, "c": ACCEPTED, "d": ACCEPTED}


def test_texts_and_speakers_of_the_test_split_are_remarked_on_and_set_aside_if_told():
    rows = [
        made("a", "train", text="Hello, there!", speaker="x"),
        made("b", "test", text="hello there", speaker="y"),
        made("c", "train", text="good day to you", speaker="y"),
        made("d", "dev", text="good night to all", speaker="z"),
        made("e", "train", text="Good night to all.", speaker="v"),
    ]
    remarks = {id: f.remarks for id, f in judged(*rows).items()}
    assert remarks == {"a": ("shared_text",), "b": (), "c": ("shared_speaker",), "d": (), "e": ("shared_text",)}
    told = judged(*rows, set_aside=["shared_text"])
    assert {id for id, f in told.items() if f.verdict == SET_ASIDE} == {"a", "e"}
    one_voice = judged(made("a", "train", text="one text here", speaker="x"), made("b", "test", text="another text here", speaker="x"))
    assert one_voice["a"].remarks == ()


def test_a_speaking_rate_is_an_outlier_by_its_own_language():
    rng = np.random.default_rng(0)
    rows = [made(f"n{i}", "train", text="x" * int(n)) for i, n in enumerate(rng.normal(30, 2, 200))]
    out = judged(*rows, made("slow", "train", text="xx"), made("fast", "train", text="x" * 200))
    assert {id for id, f in out.items() if "speaking_rate" in f.remarks} == {"slow", "fast"}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["train", "dev", "test"]), st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_every_content_stays_once_and_nothing_is_lost(rows):
    findings = [made(str(i), split, f"digest {d}", f"text number {t}") for i, (split, d, t) in enumerate(rows)]
    out = judged(*findings)
    assert set(out) == {f.id for f in findings}
    kept = [f.digest for f in out.values() if f.verdict != SET_ASIDE]
    assert len(kept) == len(set(kept)) == len({f.digest for f in findings})


# --- a corpus of it ---


@pytest.fixture
def folder(prompts, tmp_path, monkeypatch) -> Path:
    """Sixty clips as stereo WAV at 44.1 kHz with transcripts beside them."""
    root = tmp_path / "mine"
    root.mkdir()
    for cut in [c for c in prompts.cuts["train"] if c.duration < 3][:60]:
        wave = soxr.resample(corpora.load_audio(cut), RATE, 44_100)
        name = cut.id.replace("/", "_")
        soundfile.write(root / f"{name}.wav", np.stack([wave, wave], 1), 44_100)
        (root / f"{name}.txt").write_text(cut.supervisions[0].text)
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    return root


def test_a_folder_becomes_a_corpus_that_is_made_once(folder, monkeypatch):
    corpus = corpora.prepare("own", root=folder)
    assert sum(corpus.clips.values()) == 60
    assert corpus.notes["rows"] == 60
    assert "normalised text" in corpus.notes["split_rule"]
    for cut in list(corpus.cuts["train"])[:5]:
        wave_N = corpora.load_audio(cut)
        path, sample = base.origin(cut, len(wave_N) // 2)
        original, rate = soundfile.read(path)
        assert abs(sample / rate - cut.duration / 2) < 1e-4
        assert path.startswith(str(folder))
    monkeypatch.setattr(build, "examine", None)  # the second call looks at no clip
    assert corpora.prepare("own", root=folder).manifest_sha256 == corpus.manifest_sha256
    monkeypatch.undo()


def test_another_text_or_limit_makes_the_corpus_anew(folder):
    before = corpora.prepare("own", root=folder)
    some = next(iter(before.cuts["train"]))
    next(folder.glob(f"{Path(some.id).stem}*.txt")).write_text("quite another text")
    after = corpora.prepare("own", root=folder)
    assert after.manifest_sha256 != before.manifest_sha256
    long = [c for split in before.cuts.values() for c in split if c.duration > 2]
    assert len(long) > 3
    short = corpora.prepare("own", root=folder, max_seconds=2.0)
    assert {row.id for row in short.set_aside} == {c.id for c in long}


def test_whole_16_khz_files_are_read_where_they_lie(prompts, tmp_path, monkeypatch):
    root = tmp_path / "mine"
    root.mkdir()
    cuts = [c for c in prompts.cuts["train"] if c.duration < 2][:40]
    for cut in cuts:
        shutil.copy(cut.recording.sources[0].source, root / f"{cut.id.replace('/', '_')}.flac")
        (root / f"{cut.id.replace('/', '_')}.txt").write_text(cut.supervisions[0].text)
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "cache"))
    corpus = corpora.prepare("own", root=root)
    assert list((tmp_path / "cache").rglob("*.flac")) == []
    digests = {c.custom["audio"] for split in corpus.cuts.values() for c in split}
    assert digests == {c.custom["audio"] for c in cuts}


@given(st.lists(st.tuples(st.sampled_from(["", "train", "dev", "test"]), st.integers(0, 30)), min_size=1, max_size=60))
def test_a_split_belongs_to_a_text_or_a_speaker_and_what_the_corpus_says_stays(rows):
    entries = [Entry(str(i), None, f"text {n}", f"speaker {n}", split=split) for i, (split, n) in enumerate(rows)]
    census = build.Census.of(entries)
    out = [census.split(e) for e in entries]
    assert all(o.split == e.split for e, o in zip(entries, out, strict=True) if e.split in {"dev", "test"})
    assert {o.split for o in out} <= {"train", "dev", "test"}
    if not any(split for split, _ in rows):
        assert len({(o.text, o.split) for o in out}) == len({o.text for o in out})
        if census._by_speaker:
            assert len({(o.speaker, o.split) for o in out}) == len({o.speaker for o in out})


# --- trimmed and levelled ---


def test_trimming_and_level_are_numbers_that_lead_back(prompts, tmp_path):
    whole = corpora.prepare("prompts", limit=12)
    trimmed = corpora.prepare("prompts", limit=12, trim=0.05, level="peak", level_db=-6.0)
    assert trimmed.clips == whole.clips
    assert trimmed.manifest_sha256 != whole.manifest_sha256
    assert 0.75 < sum(trimmed.seconds.values()) / sum(whole.seconds.values()) < 0.999
    by_id = {c.id: c for split in whole.cuts.values() for c in split}
    for cut in (c for split in trimmed.cuts.values() for c in split):
        wave_N, full_N = corpora.load_audio(cut), corpora.load_audio(by_id[cut.id])
        first, last = vad.trimmed(full_N, 0.05)
        assert (round(cut.start * RATE), len(wave_N)) == (first, last - first)
        assert cut.supervisions[0].duration == cut.duration
        assert 20 * math.log10(np.abs(wave_N).max()) == pytest.approx(-6, abs=0.02)
        assert np.allclose(wave_N / 10 ** (cut.custom["gain"] / 20), full_N[first:last], atol=1e-6)
        for sample in (0, len(wave_N) - 1):
            _, at = base.origin(cut, sample)
            assert full_N[at] == pytest.approx(wave_N[sample] / 10 ** (cut.custom["gain"] / 20), abs=1e-6)


def test_loudness_is_pyloudnorms(prompts):
    import pyloudnorm

    corpus = corpora.prepare("prompts", limit=12, level="loudness", level_db=-30.0)
    for cut in (c for c in corpus.cuts["test"] if c.duration > 1):
        loudness = pyloudnorm.Meter(RATE).integrated_loudness(corpora.load_audio(cut).astype(float))
        assert loudness == pytest.approx(-30, abs=0.02)


def test_cutting_is_for_the_ingestion(folder):
    with pytest.raises(InputError, match=r"(?s)ingested.*corpus ingest"):
        corpora.prepare("own", root=folder, check={"long": "split"})
