"""The sound prompts of the Asterisk telephone exchange: clean speech of professional speakers in five languages, with texts.

Notable: fetched as the Debian packages or as the upstream release, whichever answers, and checked file by file
against committed SHA-256 sums, so both are the same corpus. A clip's split is decided by a hash of its
*normalised text*: :data:`TEST` of all texts are for testing, the next :data:`DEV` for validation, the rest
for training. Equal texts thus share a split by construction, in every voice and band of a language; clips never move when
others come or go, and nothing has to be dropped from train; it is verified and counted all the same. The transcripts were
written for people who join prompts: :func:`spoken` leaves what is heard of them, and where that is not sure the row is set aside.

Not covered: recordings without a transcript. Spanish texts mostly lack their accents, and the second Italian voice reads
the transcript of the first, from which it departs here and there: see :mod:`speechlab.transcripts`.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path

from speechlab import audio, fetch
from speechlab.corpora.base import PCM, Built, Corpus, SetAside, assemble, clip, overlap, prepared
from speechlab.corpora.voices import Source, find
from speechlab.errors import InputError
from speechlab.progress import track
from speechlab.text import normaliser_for
from speechlab.units import Seconds

TEST, DEV = 0.22, 0.10  # shares of the texts; of the English clips under 30 s they are 127 and 52, and leave 360
RULES = "2"  # changes when the same files would become another corpus

# what a language's voices say for signs, in the words that its other prompts use; and Italian letters that were lost on the way
HEARD = {
    "en": {"*": " star ", "#": " pound "},
    "fr": {"*": " étoile ", "#": " dièse "},
    "it": {"pu?": "può", "cos?": "così", "sar?": "sarà", "pi?": "più", " ? ": " è "},
}
# parentheses that may be read out, slashes, sounds described in words: the texts do not tell what is heard
DOUBTFUL = {"fr": r"\(ne m'appelez", "it": r"/|\(IAX\)|^un suono ", "ru": r"/|\(статус\)"}
KEY = r"[a-z]+(?:[-_]\w+)+:"  # the key of a row, which some texts repeat, or run into the next row with


def prepare(
    language: str, root: str | Path | None, max_seconds: Seconds, limit: int | None, voice: str | None = None, band: str = "wide"
) -> Corpus:
    """Fetch, check, decode and split the prompts of a voice.

    Args:
        language: BCP-47: ``en``, ``es``, ``fr``, ``it`` or ``ru``.
        root: A folder with the transcript and the sounds (``.g722`` or ``.wav``) as upstream lays them out; none fetches them.
        max_seconds: Longer clips are set aside.
        limit: Clips a split at most.
        voice: A speaker of :data:`speechlab.corpora.voices.SOURCES`; none is the language's first.
        band: ``wide`` (16 kHz) or ``telephone`` (8 kHz, resampled by :func:`speechlab.audio.decode`, so that the samples, and
            the manifest's hash, are those of one version of the resampler).

    Raises:
        InputError: if language, voice or band are not known, or the files cannot be had or differ from their sums.
    """
    source = find(language, voice, band)
    home = fetch.cache() / "corpora" / "prompts" / source.name
    sums_text = source.sums
    key = hashlib.sha256(f"{RULES}\n{normaliser_for(language).identity}\n{sums_text}".encode()).hexdigest()[:12]

    sums = fetch.read_sums(sums_text)
    if root and (bad := fetch.verify(Path(root), sums)):
        raise _different(f"{root} does not hold the prompts", bad)

    def make(folder: Path) -> Built:
        return build(Path(root) if root else _source(source, sums, home), folder, source)

    cuts, set_aside, notes = prepared(home / key, make)
    built = cuts, set_aside, {**notes, "voice": source.speaker, "band": source.band}
    return assemble("prompts", language, source.licence, source.attribution, built, max_seconds, limit)


def split_of(text: str, language: str = "en") -> str:
    """The split a text belongs to: SHA-256 of its normalised form, read as a number from 0 to 1, against the shares."""
    digest = hashlib.sha256(normaliser_for(language)(text).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if place < TEST else "dev" if place < TEST + DEV else "train"


def read_transcript(text: str) -> list[tuple[str, str]]:
    """Key and text of every row; lines that are empty or begin with ``;`` are none.

    Args:
        text: The transcript file, with or without a byte order mark.
    """
    rows = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    parts = (row.partition(":") for row in rows if row and not row.startswith(";"))
    return [(key.strip(), said.strip()) for key, _, said in parts]


def spoken(text: str, language: str = "en") -> str:
    """The words of a transcript as they are heard, by rules that look at no recording.

    Remarks in parentheses and the ellipses that mark where prompts are joined are not spoken; the keys ``*`` and
    ``#`` are. Both would count as errors of whoever hears right. Where a row's text holds the next row too, that goes.

    >>> spoken("... press # to exit (pause) ...")
    'press pound to exit'
    >>> spoken("Messaggio eliminato vm-then-pound: poi premere cancelletto", "it")
    'Messaggio eliminato'
    """
    text = re.sub(rf"^{KEY}\s|\s{KEY}\s.*", "", text)
    text = re.sub(r"\([^()]*\)|\.{2,}|\u2026", " ", text)
    for sign, words in HEARD.get(language, {}).items():
        text = text.replace(sign, words)
    return " ".join(text.split()).replace(" ,", ",")


def build(files: Path, folder: Path, source: Source) -> Built:
    """Decode the prompts to FLAC and describe them as cuts.

    Args:
        files: Where the transcript and the sounds are.
        folder: Gets ``audio/`` with the FLAC files.
        source: Whose they are.
    """
    rows = read_transcript((files / source.transcript).read_text("utf-8"))
    times = Counter(key for key, _ in rows)
    cuts, set_aside = [], []
    for key, text in track(rows, f"decoding {source.name}", len(rows)):
        id, path, sound = f"{source.name}/{key}", f"audio/{key}.flac", files / f"{key}{source.suffix}"
        twice = f"the transcript has {times[key]} rows for this recording: {text}" if times[key] > 1 else ""
        if reason := unusable(text, source.language) or twice:
            set_aside.append(SetAside(id, reason))
            continue
        text = spoken(text, source.language)
        if not sound.is_file():
            set_aside.append(SetAside(id, "the transcript has a row, but there is no recording"))
            continue
        try:
            wave_N = audio.decode(sound, "g722" if source.band == "wide" else None)
        except InputError as e:
            set_aside.append(SetAside(id, f"unreadable audio: {e}"))
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        audio.save_flac(folder / path, wave_N)
        split, digest = split_of(text, source.language), PCM + audio.pcm_sha256(wave_N)
        cuts.append(clip(id, path, len(wave_N), text, source.speaker, source.language, split, digest))
    dropped = overlap(cuts, normaliser_for(source.language))
    set_aside += [SetAside(cut.id, "its text stands in the test split") for cut in cuts if cut.id in dropped]
    known = {files / f"{key}{source.suffix}" for key in times}
    notes = {
        "rows": len(rows),
        "split_rule": f"SHA-256 of the normalised text: test {TEST:.0%}, dev {DEV:.0%}, train the rest; equal texts share a split",
        "dropped_for_test_text": len(dropped),
        "recordings_without_text": len(set(files.rglob(f"*{source.suffix}")) - known),
    }
    return [cut for cut in cuts if cut.id not in dropped], set_aside, notes


def unusable(text: str, language: str = "en") -> str:
    """Why a row of the transcript is no speech to learn from; empty if it is."""
    if not text:
        return "the transcript is empty"
    if re.search(r"\[.*\]", text):
        return f"the transcript marks a tone or a sign, not just speech: {text}"
    if not any(map(str.isalnum, normaliser_for(language)(text))):
        return f"the transcript has no words once it is normalised: {text}"
    if language in DOUBTFUL and re.search(DOUBTFUL[language], text):
        return f"the transcript leaves open what is heard: {text}"
    return ""


def _source(source: Source, sums: dict[str, str], home: Path) -> Path:
    """A folder with every file of the sums, fetched if need be."""
    folder = home / "source"
    with fetch.locked(folder):
        if fetch.verify(folder, sums):
            downloads, tarball = fetch.cache() / "downloads", source.tarball.rpartition("/")[2]
            places = {"Debian packages": lambda: _from_debian(source, sums, folder)}
            files = " and ".join(deb.file for deb in source.debs)
            if tarball:
                places["upstream release"] = lambda: _from_upstream(source, sums, folder)
                files += f", or {tarball},"
            by_hand = f"put {files} into {downloads}; or give a folder with the sounds as the corpus's root"
            fetch.first("The prompts", places, by_hand)
    return folder


def _from_debian(source: Source, sums: dict[str, str], folder: Path) -> None:
    unpacked = [fetch.debian(deb.name, deb.version, deb.sha256, folder.with_name(deb.name)) for deb in source.debs]
    _lay_out(unpacked, source, sums, folder)


def _from_upstream(source: Source, sums: dict[str, str], folder: Path) -> None:
    tarball = fetch.url([source.tarball], source.tarball_sha256, fetch.cache() / "downloads" / source.tarball.rpartition("/")[2])
    _lay_out([fetch.unpack(tarball, folder.with_name("upstream"), source.tarball_sha256)], source, sums, folder)


def _lay_out(unpacked: list[Path], source: Source, sums: dict[str, str], folder: Path) -> None:
    """Move transcript and sounds to where the sums expect them, and check them all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for top in unpacked:
        for text in top.rglob(f"{source.transcript}*"):
            part.mkdir(parents=True, exist_ok=True)
            data = text.read_bytes()
            (part / source.transcript).write_bytes(gzip.decompress(data) if text.suffix == ".gz" else data)
        for letter in top.rglob(f"letters/a{source.suffix}"):  # where that is, the sounds are: packages nest them, the release does not
            others = lambda _, names: [n for n in names if "." in n and not n.endswith(source.suffix)]  # noqa: E731
            shutil.copytree(letter.parents[1], part, ignore=others, dirs_exist_ok=True)
    if bad := fetch.verify(part, sums):
        shutil.rmtree(part, ignore_errors=True)
        raise _different("the files that came are not the prompts", bad)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    for top in unpacked:
        shutil.rmtree(top)


def _different(problem: str, bad: list[str]) -> InputError:
    shown = "".join(f"\n    - {line}" for line in bad[:5]) + (f"\n    - and {len(bad) - 5} more" if len(bad) > 5 else "")
    return InputError(f"{problem}: {len(bad)} files are missing or differ.", got=shown, expected="the SHA-256 sums in speechlab/corpora",
                      do="delete them, so that they are fetched again")  # fmt: skip
