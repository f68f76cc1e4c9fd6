"""The prompts in five languages, two bands and two Italian voices, as they are fetched; English is in test_corpora."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import audio, corpora, fetch
from speechlab.corpora import prompts as recipe
from speechlab.corpora import voices
from speechlab.errors import InputError
from speechlab.text import normaliser

BASIC = normaliser("basic")
LANGUAGES = ["en", "es", "fr", "it", "ru"]


def prepare(name: str) -> corpora.Corpus:
    source = voices.SOURCES[name]
    return recipe.prepare(source.language, None, 30.0, None, source.speaker, source.band)


def cuts_of(corpus: corpora.Corpus) -> list:
    return [cut for split in corpora.SPLITS for cut in corpus.cuts[split]]


def said(cut) -> str:
    return cut.supervisions[0].text


def kept(name: str) -> Path:
    """What was fetched for a source."""
    return fetch.cache() / "corpora/prompts" / name / "source"


@pytest.fixture(scope="session")
def carlo() -> corpora.Corpus:
    return prepare("it.carlo.wide")


@pytest.fixture(scope="session")
def menardi() -> corpora.Corpus:
    return prepare("it.menardi.telephone")


def test_the_sources_are_eleven_and_pinned():
    assert sorted(voices.SOURCES) == sorted(
        ["en", "en.allison.telephone", "it.menardi.telephone"]
        + [f"{v}.{band}" for v in ("es.allison", "fr.june", "it.carlo", "ru.ivrvoice") for band in ("wide", "telephone")]
    )
    pins = {}
    for source in voices.SOURCES.values():
        for file, pin in [(deb.file, deb.sha256) for deb in source.debs] + [(source.tarball, source.tarball_sha256)] * bool(source.tarball):
            assert re.fullmatch("[0-9a-f]{64}", pin) and pins.setdefault(file, pin) == pin
    assert len(set(pins.values())) == len(pins) == 5 + 11 + 10  # nothing pasted twice
    here = {p.name for p in Path(recipe.__file__).parent.glob("*.sha256")}
    assert here == {f"prompts.{name}.sha256" for name in voices.SOURCES}


@pytest.mark.parametrize("name", sorted(voices.SOURCES))
def test_sums_name_the_transcript_and_sounds(name):
    source = voices.SOURCES[name]
    sums = fetch.read_sums(source.sums)
    assert len(sums) > 500 and source.transcript in sums and f"letters/a{source.suffix}" in sums
    assert {Path(file).suffix for file in sums} == {source.suffix, ".txt"}


def test_both_bands_hold_the_same_recordings_by_name():
    for language in LANGUAGES:
        wide, telephone = ({file.rpartition(".")[0] for file in fetch.read_sums(s.sums)} for s in list(voices.SOURCES.values())[:10]
                           if s.language == language)  # fmt: skip
        assert wide == telephone


@pytest.mark.parametrize("name", sorted(voices.SOURCES))
def test_terms_and_makers(name):
    source = voices.SOURCES[name]
    assert source.licence.startswith("CC BY 3.0" if source.language == "ru" else "CC BY-SA 3.0")
    assert "creativecommons.org/licenses/by" in source.licence
    maker = {"en": "Allison Smith", "es": "Allison Smith", "fr": "June Wallack", "it": "Carlo Flora", "ru": "Maxim Topal"}[source.language]
    if source.speaker == "menardi":  # its terms ask for the makers and the address, visibly
        assert "Marco Menardi and his wife" in source.attribution and "http://www.voip.ammdomus.it" in source.attribution
        assert source.licence.endswith("/3.0/it/)")
    else:
        assert maker in source.attribution
    assert "by SpeechLab" in source.attribution


def test_rows_add_up(carlo, menardi):
    kinds = [Counter(row.reason.partition(":")[0] for row in corpus.set_aside) for corpus in (carlo, menardi)]
    common = {
        "the transcript marks a tone or a sign, not just speech": 16,
        "the transcript leaves open what is heard": 6,
        "the transcript has no words once it is normalised": 10,
    }
    assert kinds[0] == common | {"the transcript has a row, but there is no recording": 4, "longer than max_seconds 30": 1}
    assert kinds[1] == common | {"the transcript has a row, but there is no recording": 74, "longer than max_seconds 30": 2}
    for corpus, without in ((carlo, 4), (menardi, 30)):
        assert sum(corpus.clips.values()) + len(corpus.set_aside) == corpus.notes["rows"] == 599
        assert corpus.notes["recordings_without_text"] == without and corpus.notes["dropped_for_test_text"] == 0
    assert carlo.clips == {"train": 359, "dev": 62, "test": 141} and menardi.clips == {"train": 314, "dev": 57, "test": 120}
    assert (menardi.notes["voice"], menardi.notes["band"]) == ("menardi", "telephone")
    assert "Menardi" in menardi.attribution and menardi.licence == voices.BY_SA_IT


def test_every_file_has_its_committed_sum(menardi):
    source, folder = voices.SOURCES["it.menardi.telephone"], kept("it.menardi.telephone")
    sums = fetch.read_sums(source.sums)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(sums)
    committed = Path(recipe.__file__).with_name("prompts.it.menardi.telephone.sha256")
    subprocess.run(["sha256sum", "--check", "--quiet", committed], cwd=folder, check=True)


def test_a_text_has_one_split_in_every_voice(carlo, menardi):
    splits: dict[str, set[str]] = {}
    for cut in cuts_of(carlo) + cuts_of(menardi):
        splits.setdefault(BASIC(said(cut)), set()).add(cut.custom["split"])
    assert len(splits) > 500 and all(len(found) == 1 for found in splits.values())
    shared = {BASIC(said(cut)) for cut in cuts_of(carlo)} & {BASIC(said(cut)) for cut in cuts_of(menardi)}
    assert len(shared) > 400  # or the rule would have had nothing to do
    assert {cut.id for cut in cuts_of(carlo)}.isdisjoint(cut.id for cut in cuts_of(menardi))
    assert all(cut.id.startswith("it.menardi.telephone/") and cut.supervisions[0].speaker == "menardi" for cut in cuts_of(menardi))


def test_the_split_follows_the_rules_of_the_language():
    """English has rules of its own, and stays where it is."""
    texts = ["I can't", "colour", "twenty one", "Mr. Smith", "don't go", "you're welcome", "fifty"]
    assert any(recipe.split_of(text, "en") != recipe.split_of(text, "it") for text in texts)
    assert all(recipe.split_of(text) == recipe.split_of(text, "en") for text in texts)


def test_the_telephone_band_is_one(carlo, menardi):
    """Hardly anything above 4 kHz, where wideband speech has a good deal."""

    def above(cut) -> float:
        power_F = np.abs(np.fft.rfft(corpora.load_audio(cut))) ** 2
        frequency_F = np.fft.rfftfreq(cut.recording.num_samples, 1 / 16_000)
        return float(power_F[frequency_F > 4_100].sum() / power_F.sum())

    shares = [[above(cut) for cut in list(corpus.cuts["dev"])[:30]] for corpus in (menardi, carlo)]
    assert max(shares[0]) < 1e-4 and np.median(shares[1]) > 1e-3


def test_wav_is_resampled_from_8_khz(menardi):
    for cut in list(menardi.cuts["dev"])[:20]:
        data = (kept("it.menardi.telephone") / f"{cut.id.partition('/')[2]}.wav").read_bytes()
        assert data[:4] == b"RIFF" and int.from_bytes(data[24:28], "little") == 8_000
        samples = (len(data) - data.index(b"data") - 8) // 2
        assert abs(cut.recording.num_samples - 2 * samples) <= 2


def test_no_mark_of_the_writers_is_left(carlo, menardi):
    marks = re.compile(r"[()\[\]<>*#/…]|\.\.|\w-\w+: | \? |\w\?\w")
    assert [cut.id for cut in cuts_of(carlo) + cuts_of(menardi) if marks.search(said(cut))] == []
    written = (kept("it.carlo.wide") / "core-sounds-it.txt").read_text("utf-8")
    assert sum(bool(marks.search(text)) for _, text in recipe.read_transcript(written)) > 60  # the marks are there to be found


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("confbridge-has-joined", "si è unito alla conferenza."),
        ("conf-full", "La conferenza è piena."),
        ("unidentified-no-callback", "Non identificato, quindi non può essere richiamato."),
        ("spy-iax2", "IAX"),
        ("confbridge-muted", "Voce disattivata."),
        ("vm-tempremoved", "Il tuo messaggio provvisorio di saluto è stato eliminato"),
        ("digits/ore-2000", "duemila"),
        ("vm-login", "Posta vocale. Casella di posta?"),  # a question stays one
    ],
)
def test_rows_as_they_are_heard(carlo, key, expected):
    assert {cut.id: said(cut) for cut in cuts_of(carlo)}[f"it.carlo.wide/{key}"] == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("fr", "appuyez sur * pour revenir et sur # pour une avance", "appuyez sur étoile pour revenir et sur dièse pour une avance"),
        ("fr", "Pour (emphase)", "Pour"),
        ("fr", "… si c'est exact...", "si c'est exact"),
        ("es", "...Para salir ...", "Para salir"),
        ("ru", "... вышел из конференции.", "вышел из конференции."),
        ("ru", "conf-adminmenu: Нажмите 1", "Нажмите 1"),
        ("it", "attivi. confbridge-mute-in: Per disattivare... confbridge-mute-out: ...per", "attivi."),
        ("it", "Prego: uno, due", "Prego: uno, due"),
        ("en", "press # now", "press pound now"),
        ("es", "a * b", "a * b"),  # no other prompt tells how it is read there
    ],
)  # fmt: skip
def test_spoken(language, text, expected):
    assert recipe.spoken(text, language) == expected


@pytest.mark.parametrize(
    ("language", "text", "reason"),
    [
        ("fr", "menu poli (ne m'appelez plus, jamais), 4", "leaves open"),
        ("fr", "(ahooga)", "no words"),
        ("it", "un suono beep", "leaves open"),
        ("it", "attivare/disattivare", "leaves open"),
        ("ru", "убрать пометку (статус) «важно»", "leaves open"),
        ("ru", "<beep ascending>", "no words"),
        ("es", "[ tono de error ]", "tone"),
        ("ru", "Вчера.", ""),
        ("it", "Premere uno (in inglese)", ""),
    ],
)
def test_unusable_rows(language, text, reason):
    assert (reason in recipe.unusable(text, language)) if reason else recipe.unusable(text, language) == ""


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab-_: ()[].…*#?/,ù1\t"), max_size=60), st.sampled_from(LANGUAGES))
def test_whatever_is_written_something_plain_is_heard(text, language):
    heard = recipe.spoken(text, language)
    assert heard == " ".join(heard.split()) and ".." not in heard and "…" not in heard
    assert recipe.split_of(text, language) in corpora.SPLITS


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9/_-]{0,9}", fullmatch=True), st.from_regex(r"([a-zà:;]( ?[a-zà:;])*)?", fullmatch=True)))
)
def test_a_transcript_is_read_as_it_was_written(rows):
    text = "\ufeff; comment\n\n" + "".join(f"{key}: {words}\r\n" for key, words in rows)
    assert recipe.read_transcript(text) == rows


def test_two_rows_for_one_recording_are_both_set_aside(menardi, tmp_path):
    """As the Spanish transcript has them: nothing says which of the two is heard."""
    source = voices.SOURCES["it.menardi.telephone"]
    (tmp_path / source.transcript).write_text("digits/1: uno\ndigits/2: due\ndigits/2: dieci\n", "utf-8")
    (tmp_path / "digits").mkdir()
    for key in ("digits/1", "digits/2"):
        (tmp_path / f"{key}.wav").write_bytes((kept("it.menardi.telephone") / f"{key}.wav").read_bytes())
    cuts, set_aside, notes = recipe.build(tmp_path, tmp_path / "out", source)
    assert [cut.id for cut in cuts] == ["it.menardi.telephone/digits/1"] and notes["rows"] == 3
    assert [row.reason for row in set_aside] == [f"the transcript has 2 rows for this recording: {text}" for text in ("due", "dieci")]


@pytest.mark.parametrize(
    ("language", "voice", "band", "says"),
    [
        ("it", "menardi", "wide", '"menardi" is not there in the band "wide".*telephone: no other'),
        ("it", "menardy", "wide", 'no voice "menardy".*did you mean "menardi".*known: carlo, menardi'),
        ("ita", None, "wide", 'not there in "ita".*did you mean "it"'),
        ("it", None, "wideband", "band.*wide or telephone"),
        ("../it", None, "wide", "not there"),
        ("en", "june", "telephone", "known: allison"),
    ],
)
def test_what_is_not_there_says_what_is(language, voice, band, says):
    with pytest.raises(InputError, match=f"(?s){says}"):
        recipe.prepare(language, None, 30.0, None, voice, band)


def test_the_first_voice_is_the_default():
    assert [voices.find(language, None, "wide").speaker for language in LANGUAGES] == ["allison", "allison", "june", "carlo", "ivrvoice"]
    assert voices.find("it", None, "telephone").name == "it.carlo.telephone" and voices.find("en", None, "wide").name == "en"


def test_without_a_network_the_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECHLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("SPEECHLAB_OFFLINE", "1")
    with pytest.raises(fetch.FetchError) as e:
        prepare("it.menardi.telephone")
    assert "asterisk-prompt-it-menardi-wav_1%3a1.4.22+mm20110907-3.1_all.deb" in str(e.value) and "downloads.asterisk.org" not in str(
        e.value
    )
    with pytest.raises(fetch.FetchError) as e:
        prepare("ru.ivrvoice.telephone")
    assert "asterisk-core-sounds-ru-wav-1.6.1.tar.gz" in str(e.value)


@pytest.mark.slow
def test_all_of_them(tmp_path):
    """Every language, band and voice, as a user would fetch them: about a minute the first time."""
    found = {name: prepare(name) for name in voices.SOURCES}
    assert found["en"].manifest_sha256.startswith("ee8d511fc652a850")
    for name, corpus in found.items():
        clips = cuts_of(corpus)
        assert len(clips) + len(corpus.set_aside) == corpus.notes["rows"], name
        assert corpus.notes["dropped_for_test_text"] == 0 and min(corpus.clips.values()) > 40
        assert 0.12 < corpus.clips["test"] / len(clips) < 0.30
        assert not [cut.id for cut in clips if re.search(r"[()\[\]…]|\.\.", said(cut))]
    assert {name: sum(corpus.clips.values()) for name, corpus in found.items()} == {
        "en": 539, "en.allison.telephone": 539, "es.allison.wide": 470, "es.allison.telephone": 470, "fr.june.wide": 506,
        "fr.june.telephone": 506, "it.carlo.wide": 562, "it.carlo.telephone": 562, "ru.ivrvoice.wide": 539, "ru.ivrvoice.telephone": 539,
        "it.menardi.telephone": 491,
    }  # fmt: skip
    ids = [cut.id for corpus in found.values() for cut in cuts_of(corpus)]
    assert len(set(ids)) == len(ids)
    for wide, telephone in [(n, n.replace("wide", "telephone")) for n in found if "wide" in n] + [("en", "en.allison.telephone")]:
        one, other = ({cut.id.partition("/")[2]: cut for cut in cuts_of(found[n])} for n in (wide, telephone))
        assert {k: (said(c), c.custom["split"]) for k, c in one.items()} == {k: (said(c), c.custom["split"]) for k, c in other.items()}
        keys = sorted(one, key=lambda key: -one[key].duration)[:8]
        alike = [likeness(one[key], other[key]) for key in keys]
        apart = [likeness(one[key], other[keys[i - 1]]) for i, key in enumerate(keys)]
        assert min(alike) > 0.9 > max(apart), wide  # the same recordings, and not just the same names


def likeness(one, other) -> float:
    """Correlation of two clips' loudness over 20 ms, best over small shifts."""
    loud = [np.log(np.add.reduceat(wave**2, np.arange(0, len(wave), audio.FRAME)) + 1e-6) for wave in map(corpora.load_audio, (one, other))]
    size = min(map(len, loud)) - 20
    return max(float(np.corrcoef(loud[0][shift : shift + size], loud[1][:size])[0, 1]) for shift in range(10)) if size > 20 else 0.0
