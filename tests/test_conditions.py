"""Conditions on real prompts: what is promised is measured back on what is stored, and nothing but seed and id decides it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse.utils import fastcopy

from speechlab import audio, babble, conditions, effects, fetch, pool
from speechlab.conditions import STANDARD, condition, prepare, standard
from speechlab.corpora import base, load_audio
from speechlab.errors import InputError

RATE = 16_000


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> Path:
    """A cache of this file's own; the corpora stay where they are."""
    folder, kept = tmp_path_factory.mktemp("cache"), fetch.cache() / "corpora"
    kept.mkdir(exist_ok=True)
    (folder / "corpora").symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEECHLAB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def cuts(prompts) -> list:
    """Eight real test clips, short to long."""
    clips = sorted(prompts.cuts["test"], key=lambda cut: cut.duration)
    return clips[: -len(clips) // 8 : len(clips) // 8][:8]


@pytest.fixture(scope="module")
def crowded(prompts) -> base.Corpus:
    """A corpus of eight speakers: the prompts' train clips under other names, one of whom says the test clips."""
    train = [spoken_by(cut, f"speaker {i % 8}") for i, cut in enumerate(prompts.cuts["train"])]
    test = [spoken_by(cut, "speaker 0") for cut in prompts.cuts["test"]]
    return base.changed(replace(prompts, name="own"), {"train": train, "dev": list(prompts.cuts["dev"]), "test": test})


@pytest.fixture
def noises(tmp_path, prompts) -> Path:
    """A folder of real recordings, one longer and one shorter than most clips."""
    clips = sorted(prompts.cuts["train"], key=lambda cut: cut.duration)
    for name, cut in (("b/long.flac", clips[-1]), ("a.wav", clips[0])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, load_audio(cut), RATE)
    (tmp_path / "README.txt").write_text("not a sound")
    return tmp_path


def spoken_by(cut, speaker: str):
    return fastcopy(cut, supervisions=[fastcopy(cut.supervisions[0], speaker=speaker)])


def said_by_0(cuts) -> list:
    return [spoken_by(cut, "speaker 0") for cut in cuts]


def made(folder: Path, name: str, wave, text: str = "said", speaker: str = "somebody"):
    """A clip of any waveform, as a corpus would have it."""
    path = folder / f"{name.encode().hex()}.flac"
    audio.save_flac(path, wave)
    wave = audio.decode(path)
    return base.clip(name, str(path), len(wave), text, speaker, "en", "test", base.PCM + audio.pcm_sha256(wave), {"accent": "none"})


def tone(seconds: float, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def added(heard, cut) -> np.ndarray:
    """What was added to a clip: the stored samples, brought up again, less the clip."""
    return load_audio(heard).astype(np.float64) / 10 ** (heard.custom["heard"].get("gain", 0) / 20) - load_audio(cut)


def snr(heard, cut) -> float:
    return 10 * np.log10(audio.active_power(load_audio(cut)) / np.mean(added(heard, cut) ** 2))


def lag(a, b) -> int:
    """By how many samples b is later than a."""
    return int(np.argmax(scipy.signal.correlate(b, a, method="fft"))) - (len(a) - 1)


def pcm(heard) -> dict[str, str]:
    return {cut.id: cut.custom["audio"] for cut in heard.cuts}


# --- names ---


def test_the_full_table():
    read = [condition(name) for name in STANDARD]
    assert [c.name for c in read] == list(STANDARD)
    assert len(set(STANDARD)) == len({c.about for c in read}) == 20
    assert [c.name for c in read if c.snr is None and c.kind == "noise"] == []
    assert [c.snr for c in read if c.which == "babble"] == [20, 15, 10, 5]
    assert {c.kind for c in read} == {"clean", "noise", "room", "codec", "tempo", "nothing"}
    assert all(c.about.endswith(".") for c in read)
    assert standard() == STANDARD
    more = standard(Path("/anywhere"))
    assert set(more) - set(STANDARD) == {"noise-20db", "noise-15db", "noise-10db", "noise-5db"} and len(more) == 24


@settings(deadline=None)
@given(st.sampled_from(["white", "babble", "noise"]), st.integers(-99, 99))
def test_any_whole_snr_in_range_has_a_name(which, level):
    name = f"{which}-{level}db"
    if -10 <= level <= 40:
        assert (condition(name).snr, condition(name).which, condition(name).name) == (level, which, name)
    else:
        with pytest.raises(InputError, match="Unknown condition"):
            condition(name)


@settings(deadline=None)
@given(st.integers(50, 200), st.integers(0, 999))
def test_tempos_and_bitrates_have_a_name(hundredths, kbits):
    if hundredths != 100:
        assert condition(f"tempo-{hundredths / 100:g}").amount == hundredths / 100
    for name, known in ((f"opus-{kbits}k", 6 <= kbits <= 256), (f"mp3-{kbits}k", kbits in conditions.MP3)):
        if known:
            assert (condition(name).amount, condition(name).kind) == (kbits, "codec")
        else:
            with pytest.raises(InputError, match="Unknown condition"):
                condition(name)


@settings(deadline=None)
@given(st.one_of(st.text(max_size=12), st.from_regex(r"(white|mp3|opus|tempo|room|noise)-[-+0-9.]{0,4}(db|k|)", fullmatch=True)))
def test_a_thing_has_one_name(name):
    try:
        read = condition(name)
    except InputError:
        return
    assert read.name == name


@pytest.mark.parametrize(
    "name", ["white-05db", "white-10.5db", "white-41db", "tempo-0.80", "tempo-1", "tempo-3", "mp3-65k", "white-١db", ""]
)
def test_unknown_names_say_what_there_is(name):
    with pytest.raises(InputError, match="Unknown condition") as caught:
        prepare(name, [], 1)
    assert "N from -10 to 40" in str(caught.value)
    with pytest.raises(InputError, match='did you mean "telephone"'):
        condition("telefone")


# --- what is heard ---


def test_clean_is_what_was_given(cuts, cache):
    heard = prepare("clean", cuts, 1)
    assert heard.cuts == list(cuts) and heard.notes == {}
    assert heard.sha256 == prepare("clean", cuts[::-1], 2).sha256 != prepare("clean", cuts[1:], 1).sha256
    assert not list((cache / "conditions").glob("clean*"))


@pytest.mark.parametrize("name", ["white--10db", "white-5db", "white-40db", "babble--10db", "babble-10db", "noise-0db", "noise-20db"])
def test_snr_is_exact_over_active_speech(cuts, crowded, noises, name):
    heard = prepare(name, said_by_0(cuts), 1, corpus=crowded, noise=noises)
    assert heard.notes == {} and len(heard.cuts) == len(cuts)
    for now, before in zip(heard.cuts, cuts, strict=True):
        assert snr(now, before) == pytest.approx(condition(name).snr, abs=0.1)
        assert snr(now, before) == pytest.approx(now.custom["heard"]["snr"], abs=0.001)


def test_what_would_pass_full_scale_comes_down_as_a_whole(tmp_path, cuts):
    loud = load_audio(cuts[-1])
    loud = made(tmp_path, "loud", 0.99 * loud / np.abs(loud).max())
    (heard,) = prepare("white--5db", [loud], 1).cuts
    wave, gain = load_audio(heard), heard.custom["heard"]["gain"]
    assert gain < -3 and np.abs(wave).max() == pytest.approx(32767 / 32768, abs=1e-4)
    assert np.sum(np.abs(wave) > 0.999) < 4  # not clipped
    assert snr(heard, loud) == pytest.approx(-5, abs=0.01)
    del heard.custom["heard"]["gain"]
    assert abs(snr(heard, loud) + 5) > 0.5  # the measure would see a level that is off


def test_along_a_curve_the_noise_stays_and_gets_louder(cuts, crowded):
    for which in ("white", "babble"):
        soft, loud = (prepare(f"{which}-{level}db", said_by_0(cuts), 1, corpus=crowded) for level in (20, 10))
        assert soft.sha256 != loud.sha256
        for a, b, cut in zip(soft.cuts, loud.cuts, cuts, strict=True):
            assert np.corrcoef(added(a, cut), added(b, cut))[0, 1] > 0.99
        others = prepare(f"{which}-10db", said_by_0(cuts), 2, corpus=crowded)
        assert abs(np.corrcoef(added(others.cuts[0], cuts[0]), added(loud.cuts[0], cuts[0]))[0, 1]) < 0.5


@pytest.mark.parametrize("size", ["small", *(pytest.param(size, marks=pytest.mark.slow) for size in ("medium", "hall"))])
def test_rooms_are_as_reverberant_as_they_say(tmp_path, cuts, size):
    click = np.zeros(3 * RATE)
    click[100] = 0.9
    clips = [made(tmp_path, f"click {i}", click) for i in range(8)]
    heard = prepare(f"room-{size}", [*clips, *cuts], 1)
    low, high = conditions.ROOMS[size]
    for cut in heard.cuts[:8]:
        wave = load_audio(cut)
        assert low <= cut.custom["heard"]["rt60"] <= high
        assert effects.reverberation(wave[100:]) == pytest.approx(cut.custom["heard"]["rt60"], rel=0.02)
        assert np.abs(wave).argmax() == 100  # no delay
    assert len({cut.custom["heard"]["rt60"] for cut in heard.cuts}) > 2  # several rooms
    for now, before in zip(heard.cuts[8:], cuts, strict=True):
        assert len(load_audio(now)) == len(load_audio(before))
    with pytest.raises(InputError, match="no decay"):
        effects.reverberation(click[100:].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "truth"),
    [("mp3-64k", {"codec": "mp3", "bitrate": 64_000}), ("opus-16k", {"codec": "opus", "bitrate": 16_000}),
     ("telephone", {"codec": "telephone"}), ("gsm", {"codec": "gsm"})],
)  # fmt: skip
def test_codecs_keep_place_and_length(cuts, name, truth):
    heard = prepare(name, cuts, 1)
    for now, before in zip(heard.cuts, cuts, strict=True):
        a, b = load_audio(before), load_audio(now)
        assert len(a) == len(b) and abs(lag(a, b)) <= 1
        assert lag(a, np.roll(b, 5)) - lag(a, b) == 5
        assert truth.items() <= now.custom["heard"].items()
        assert 5 < 10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)) < 40  # something was lost


@pytest.mark.parametrize("name", ["tempo-0.8", "tempo-1.25"])
def test_tempo_keeps_pitch_and_moves_duration(tmp_path, cuts, name):
    factor = condition(name).amount
    heard = prepare(name, [made(tmp_path, "tone", tone(2.0)), *cuts], 1)
    for now, seconds in zip(heard.cuts, [2.0, *(cut.duration for cut in cuts)], strict=True):
        assert len(load_audio(now)) == round(seconds * RATE / factor) == round(now.duration * RATE)
        assert now.supervisions[0].duration == now.duration
        assert now.custom["heard"]["tempo"] == factor
    assert fundamental(load_audio(heard.cuts[0])) == pytest.approx(440, abs=2)
    assert abs(fundamental(effects.speed(tone(2.0).astype(np.float32), factor)) - 440) > 80  # speed would have moved it


def fundamental(wave) -> float:
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax() * RATE / len(wave))


def test_a_clip_is_not_slowed_down_beyond_what_models_hear(tmp_path):
    clips = [made(tmp_path, "long", tone(25.0)), made(tmp_path, "short", tone(1.0))]
    heard = prepare("tempo-0.8", clips, 1)
    assert heard.cuts[0].duration == 25.0 and heard.cuts[1].duration == 1.25
    assert list(heard.notes) == ["long"] and "longer than 30 s" in heard.notes["long"]
    assert prepare("tempo-1.25", clips, 1).notes == {}


def test_where_nothing_is_said_the_text_is_empty(cuts, noises):
    silent, white, recorded = (
        prepare(name, cuts, 1, noise=n) for name, n in (("silence", noises), ("noise-only", None), ("noise-only", noises))
    )
    for heard in (silent, white, recorded):
        assert [cut.duration for cut in heard.cuts] == [cut.duration for cut in cuts]
        assert {cut.supervisions[0].text for cut in heard.cuts} == {""}
        assert [cut.supervisions[0].speaker for cut in heard.cuts] == [cut.supervisions[0].speaker for cut in cuts]
    assert not any(load_audio(cut).any() for cut in silent.cuts)
    for heard in (white, recorded):
        for cut in heard.cuts:
            level = 10 * np.log10(np.mean(load_audio(cut).astype(np.float64) ** 2))
            assert level == pytest.approx(cut.custom["heard"]["level"], abs=1e-3)
            assert level == pytest.approx(-30, abs=0.1)
    assert abs(np.corrcoef(load_audio(white.cuts[-1])[1:], load_audio(white.cuts[-1])[:-1])[0, 1]) < 0.05
    assert white.sha256 != recorded.sha256
    assert {cut.custom["heard"]["recording"] for cut in recorded.cuts} == {"a.wav", "long.flac"}


def test_a_clip_keeps_who_and_what_it_is(cuts, tmp_path):
    other = made(tmp_path, "../../<script>", tone(1.0))
    cut = made(tmp_path, "b", tone(1.0))
    cut.custom |= {"gain": -6.0, "source": {"path": "x", "rate": 8000, "start": 0.0}}
    cut = fastcopy(cut, start=0.25, duration=0.5, supervisions=[fastcopy(cut.supervisions[0], duration=0.5)])
    heard = prepare("telephone", [other, cut, *cuts], 1)
    assert [c.id for c in heard.cuts] == ["../../<script>", "b", *(c.id for c in cuts)]
    assert [c.supervisions[0].text for c in heard.cuts] == ["said", "said", *(c.supervisions[0].text for c in cuts)]
    assert heard.cuts[0].custom["columns"] == {"accent": "none"} and heard.cuts[0].custom["split"] == "test"
    assert heard.cuts[1].duration == 0.5 and heard.cuts[1].start == 0
    middle = slice(2000, 6000)  # the gain is in the samples, once
    assert np.abs(load_audio(heard.cuts[1])[middle]).max() == pytest.approx(0.5 * 10 ** (-6 / 20), rel=0.03)
    folder = fetch.cache() / "conditions"
    assert all(Path(c.recording.sources[0].source).resolve().is_relative_to(folder.resolve()) for c in heard.cuts)


def test_what_cannot_be_altered_is_kept_and_named(tmp_path, cuts, monkeypatch):
    clips = [made(tmp_path, "nothing", np.zeros(RATE)), made(tmp_path, "faint", tone(1.0, level=6e-4)), *cuts]
    heard = prepare("white-40db", clips, 1)
    assert set(heard.notes) == {"nothing", "faint"} and [cut.id for cut in heard.cuts] == [cut.id for cut in clips]
    assert "no SNR" in heard.notes["nothing"] and "snr" not in heard.cuts[0].custom["heard"]
    assert not load_audio(heard.cuts[0]).any() and heard.cuts[0].supervisions[0].text == "said"
    assert f"{heard.cuts[1].custom['heard']['snr']:.1f} dB" in heard.notes["faint"]
    assert snr(heard.cuts[1], clips[1]) == pytest.approx(heard.cuts[1].custom["heard"]["snr"], abs=0.01)
    assert prepare("white-40db", clips, 1).notes == heard.notes  # from the cache
    assert prepare("gsm", clips[:1], 1).notes == {}  # silence through a codec is what it says

    def dies(work, items, workers):
        for item in items:
            yield item, pool.Crashed("the process that worked on it died") if item[0].id == "faint" else work(item)

    monkeypatch.setattr(conditions.pool, "over", dies)
    heard = prepare("mp3-32k", clips, 1)
    assert list(heard.notes) == ["faint"] and np.array_equal(load_audio(heard.cuts[1]), load_audio(clips[1]))


# --- what decides ---


def test_the_second_call_finds_what_the_first_made(cuts, monkeypatch):
    first = prepare("white-15db", cuts, 3)
    monkeypatch.setattr(conditions, "_work", None)
    again = prepare("white-15db", cuts, 3)
    assert again == first and again.cuts == first.cuts
    with pytest.raises(TypeError):
        prepare("white-15db", cuts, 4)
    monkeypatch.undo()
    other = prepare("white-15db", cuts, 4)
    assert other.sha256 != first.sha256 and set(pcm(other).values()).isdisjoint(pcm(first).values())
    Path(first.cuts[0].recording.sources[0].source).unlink()
    assert prepare("white-15db", cuts, 3).sha256 == first.sha256  # made again, the same
    texts = [fastcopy(cut, supervisions=[fastcopy(cut.supervisions[0], text="else")]) for cut in cuts]
    assert prepare("white-15db", texts, 3).sha256 != first.sha256  # another reference is another comparison


@pytest.mark.parametrize("name", ["white-10db", "babble-10db", "noise-10db", "room-small", "noise-only", "opus-24k"])
def test_neither_order_nor_company_changes_a_clip(cuts, crowded, noises, name):
    clips = said_by_0(cuts)
    whole, turned, fewer, one = (
        prepare(name, some, 1, corpus=crowded, noise=noises) for some in (clips, clips[::-1], clips[2:5], clips[3:4])
    )
    assert whole.sha256 == turned.sha256 and [cut.id for cut in turned.cuts] == [cut.id for cut in clips[::-1]]
    assert pcm(whole) == pcm(turned)
    assert pcm(fewer).items() <= pcm(whole).items() and pcm(one).items() <= pcm(whole).items()
    assert len(set(pcm(whole).values())) == len(clips)


def test_the_pool_matters_and_its_order_does_not(cuts, crowded):
    splits = {split: list(crowded.cuts[split]) for split in base.SPLITS}
    turned = base.changed(crowded, {**splits, "train": splits["train"][::-1]})
    others = base.changed(crowded, {**splits, "train": splits["train"][:200]})
    assert turned.manifest_sha256 != crowded.manifest_sha256  # so nothing comes from the cache
    here, same, other = (prepare("babble-10db", said_by_0(cuts), 1, corpus=corpus) for corpus in (crowded, turned, others))
    assert here.sha256 == same.sha256 != other.sha256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["babble-5db", "room-small", "tempo-0.8"])
def test_processes_do_not_change_a_clip(cuts, crowded, noises, name, tmp_path, monkeypatch):
    clips = said_by_0(cuts)
    here = prepare(name, clips, 1, corpus=crowded, noise=noises)
    over, seen = pool.over, []
    monkeypatch.setattr(conditions.pool, "over", lambda work, items, workers: seen.append(workers) or over(work, items, workers))
    monkeypatch.setattr(conditions, "MANY", 0.0)
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path / "elsewhere"))
    there = prepare(name, clips, 1, corpus=crowded, noise=noises)
    assert seen == [None] and there.sha256 == here.sha256
    assert [cut.custom["heard"] for cut in there.cuts] == [cut.custom["heard"] for cut in here.cuts]


# --- babble and recordings ---


def test_babble_is_made_of_others(prompts, crowded):
    clips = [spoken_by(cut, f"speaker {i % 8}") for i, cut in enumerate(list(prompts.cuts["test"])[:16])]
    heard = prepare("babble-0db", clips, 1, corpus=crowded)
    voices = [set(cut.custom["heard"]["speakers"]) for cut in heard.cuts]
    assert all(len(v) == babble.VOICES and cut.supervisions[0].speaker not in v for cut, v in zip(clips, voices, strict=True))
    assert set().union(*voices) == {f"speaker {i}" for i in range(8)} and len(set(map(frozenset, voices))) > 4
    tracks, _ = babble.draw(clips[0], np.random.default_rng(1), babble.by_speaker([crowded]), "babble-0db")
    said = [cut for track, _ in tracks for cut in track]
    assert {cut.custom["split"] for cut in said} == {"train"} and len({cut.id for cut in said}) == len(said)
    assert all(sum(cut.duration for cut in track) >= clips[0].duration for track, _ in tracks)


def test_voices_of_babble_are_equally_loud(prompts, crowded):
    cut = max(prompts.cuts["test"], key=lambda cut: cut.duration)
    tracks, _ = babble.draw(spoken_by(cut, "speaker 0"), np.random.default_rng(1), babble.by_speaker([crowded]), "babble-0db")
    wave = load_audio(cut)
    levels = []
    for track in tracks:
        alone = babble.add(wave, [track], 0.0) - wave
        both = babble.add(wave, tracks, 0.0) - wave
        levels.append(np.sum(alone * both) / np.sum(alone**2))
    assert max(levels) / min(levels) < 1.3  # the sum holds as much of each
    assert sum(x**2 for x in levels) == pytest.approx(1, abs=0.2)  # and of nothing else
    loud, soft = (
        fastcopy(other, custom={**other.custom, "gain": gain}) for other, gain in zip(crowded.cuts["train"], (0.0, -20.0), strict=False)
    )
    heard = babble.add(np.resize(wave, round((loud.duration + soft.duration) * RATE)), [((loud, soft), 0.0)], -10.0)
    heard = heard - np.resize(wave, len(heard))
    halves = heard[: round(loud.duration * RATE)], heard[round(loud.duration * RATE) :]
    assert audio.active_power(halves[0]) == pytest.approx(audio.active_power(halves[1]), rel=0.05)  # whatever they were recorded at


def test_few_speakers_are_heard_twice_and_fewer_refused(cuts, crowded):
    def of(speakers: int) -> base.Corpus:
        train = [spoken_by(cut, f"speaker {i % speakers}") for i, cut in enumerate(crowded.cuts["train"])]
        return base.changed(crowded, {"train": train, "dev": list(crowded.cuts["dev"]), "test": list(crowded.cuts["test"])})

    clips = said_by_0(cuts[:2])
    tracks, speakers = babble.draw(clips[0], np.random.default_rng(1), babble.by_speaker([of(4)]), "babble-0db")
    assert speakers == ["speaker 1", "speaker 2", "speaker 3"]
    said = [cut.id for track, _ in tracks for cut in track]
    assert len(tracks) == 6 and len(set(said)) == len(said)
    with pytest.raises(InputError, match="too few voices") as caught:
        prepare("babble-5db", clips, 1, corpus=of(3))
    assert "2 other speakers" in str(caught.value) and "noise-5db" in str(caught.value)
    with pytest.raises(InputError, match="nobody knows who speaks"):
        prepare("babble-5db", [spoken_by(clips[0], "")], 1, corpus=crowded)
    with pytest.raises(InputError, match="needs other speakers"):
        prepare("babble-5db", clips, 1)


@pytest.mark.slow
def test_babble_of_prompts_comes_from_the_other_languages(prompts, cuts):
    heard = prepare("babble-10db", cuts, 1, corpus=prompts)
    assert {tuple(cut.custom["heard"]["speakers"]) for cut in heard.cuts} == {("carlo", "ivrvoice", "june")}  # allison reads Spanish too
    assert all(snr(now, before) == pytest.approx(10, abs=0.1) for now, before in zip(heard.cuts, cuts, strict=True))


def test_recordings_are_drawn_from_a_folder(cuts, noises):
    heard = prepare("noise-10db", cuts, 1, noise=noises)
    assert {cut.custom["heard"]["recording"] for cut in heard.cuts} == {"a.wav", "long.flac"}
    for now, before in zip(heard.cuts, cuts, strict=True):
        (file,) = noises.rglob(now.custom["heard"]["recording"])
        noise = added(now, before)
        expected = effects.stretch(audio.decode(file), len(noise), now.custom["heard"]["from"])
        assert np.corrcoef(noise, expected)[0, 1] > 0.99
        assert np.corrcoef(noise, np.roll(expected, 1000))[0, 1] < 0.9
    assert len({cut.custom["heard"]["from"] for cut in heard.cuts}) == len(cuts)
    moved = noises.parent / f"{noises.name}-moved"
    shutil.copytree(noises, moved)
    assert prepare("noise-10db", cuts, 1, noise=moved).sha256 == heard.sha256
    soundfile.write(moved / "a.wav", 0.1 * np.random.default_rng(1).standard_normal(40_000), RATE)
    changed = prepare("noise-10db", cuts, 1, noise=moved)
    assert changed.sha256 != heard.sha256
    same = [cut.id for cut in heard.cuts if cut.custom["heard"]["recording"] == "long.flac"]
    assert same and all(pcm(changed)[id] == pcm(heard)[id] for id in same)


def test_a_folder_of_noise_must_hold_sound(cuts, tmp_path):
    with pytest.raises(InputError, match="needs recordings of noise"):
        prepare("noise-10db", cuts, 1)
    for folder, why in ((tmp_path, "no audio in it"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(InputError, match="has no noise to add") as caught:
            prepare("noise-10db", cuts, 1, noise=folder)
        assert why in str(caught.value)
    soundfile.write(tmp_path / "x.wav", np.zeros(1000), RATE)
    with pytest.raises(InputError, match="silent") as caught:
        prepare("noise-only", cuts, 1, noise=tmp_path)
    assert "x.wav" in str(caught.value)
    (tmp_path / "x.wav").write_bytes(b"no sound")
    with pytest.raises(InputError, match="cannot be decoded") as caught:
        prepare("noise-10db", cuts, 1, noise=tmp_path)
    assert "x.wav" in str(caught.value)


@pytest.mark.slow
def test_the_whole_table_of_real_clips(prompts, cuts, noises):
    seen = {}
    for name in standard(noises):
        heard = prepare(name, cuts, 1, corpus=prompts, noise=noises)
        assert [cut.id for cut in heard.cuts] == [cut.id for cut in cuts] and heard.notes == {}
        seen[name] = heard.sha256
        for cut in heard.cuts:
            assert len(load_audio(cut)) == round(cut.duration * RATE)
    assert len(set(seen.values())) == 24


def test_conditions_by_their_names():
    assert [c.name for c in conditions.named(("clean", "gsm", "clean"))] == ["clean", "gsm"]
    assert tuple(c.name for c in conditions.named(("standard",))) == STANDARD
    assert len(conditions.named(("standard",), Path("noises"))) == len(STANDARD) + 4
    with pytest.raises(InputError, match='did you mean "white-20db"'):
        conditions.named(("clean", "white-20bd"))
