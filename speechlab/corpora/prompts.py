"""The sound prompts of the Asterisk telephone exchange: clean wideband speech of one professional speaker, with texts.

Notable: fetched as the Debian packages or as the upstream release, whichever answers, and checked file by file
against committed SHA-256 sums, so both are the same corpus. A clip's split is decided by a hash of its
*normalised text*: :data:`TEST` of all texts are for testing, the next :data:`DEV` for validation, the rest
for training. Equal texts thus share a split by construction, clips never move when others come or go, and nothing
has to be dropped from train; it is verified and counted all the same. The transcripts were written for people who
join prompts: :func:`spoken` leaves what is heard of them.

Not covered: languages other than English, the narrow-band recordings.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from speechlab import audio, fetch
from speechlab.corpora.base import PCM, Built, Corpus, SetAside, assemble, clip, overlap, prepared
from speechlab.errors import InputError, did_you_mean
from speechlab.progress import track
from speechlab.text import normaliser
from speechlab.units import Seconds

TEST, DEV = 0.22, 0.10  # shares of the texts; of the English clips under 30 s they are 127 and 52, and leave 360
RULES = "2"  # changes when the same files would become another corpus


@dataclass(frozen=True)
class Deb:
    """A Debian package, pinned."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where a language comes from, and whose voice it is."""

    speaker: str
    transcript: str
    debs: tuple[Deb, ...]
    tarball: str
    tarball_sha256: str
    attribution: str


SOURCES = {
    "en": Source(
        speaker="allison",
        transcript="core-sounds-en.txt",
        debs=(
            Deb("asterisk-core-sounds-en", "1.6.1-1", "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
            Deb("asterisk-core-sounds-en-g722", "1.6.1-1", "38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806"),
        ),
        tarball="https://downloads.asterisk.org/pub/telephony/sounds/releases/asterisk-core-sounds-en-g722-1.6.1.tar.gz",
        tarball_sha256="59891033e764d9dffc5ccdd78e845a1c8ea6bed0b434128bb0199c63ef591770",  # as in Debian's source package too
        attribution="Asterisk core sounds 1.6.1, English: recorded by Allison Smith (theivrvoice.com), sponsored by Digium, Inc. "
        "Decoded from G.722 and split by SpeechLab.",
    ),
}
LICENCE = "CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)"


def prepare(language: str, root: str | Path | None, max_seconds: Seconds, limit: int | None) -> Corpus:
    """Fetch, check, decode and split the prompts of a language.

    Args:
        language: A key of :data:`SOURCES`.
        root: A folder with the transcript and the ``.g722`` files as upstream lays them out; none fetches them.
        max_seconds: Longer clips are set aside.
        limit: Clips a split at most.

    Raises:
        InputError: if the language is not known, or the files cannot be had or differ from their sums.
    """
    if language not in SOURCES:
        raise InputError(f'The prompts are not there in "{language}".', got=language, expected="a known language; others come later",
                         do=did_you_mean(language, SOURCES))  # fmt: skip
    source, sums_text = SOURCES[language], _sums_text(language)
    home = fetch.cache() / "corpora" / "prompts" / language
    key = hashlib.sha256(f"{RULES}\n{normaliser('english').identity}\n{sums_text}".encode()).hexdigest()[:12]

    sums = fetch.read_sums(sums_text)
    if root and (bad := fetch.verify(Path(root), sums)):
        raise _different(f"{root} does not hold the prompts", bad)

    def make(folder: Path) -> Built:
        return build(Path(root) if root else _source(source, sums, home), folder, source, language)

    return assemble("prompts", language, LICENCE, source.attribution, prepared(home / key, make), max_seconds, limit)


def split_of(text: str) -> str:
    """The split a text belongs to: SHA-256 of its normalised form, read as a number from 0 to 1, against the shares."""
    digest = hashlib.sha256(normaliser("english")(text).encode()).digest()
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


def spoken(text: str) -> str:
    """The words of a transcript as they are heard, by rules that look at no recording.

    Remarks in parentheses and the ellipses that mark where prompts are joined are not spoken; the keys ``*`` and
    ``#`` are. Both would count as errors of whoever hears right.

    >>> spoken("... press # to exit (pause) ...")
    'press pound to exit'
    """
    text = re.sub(r"\([^()]*\)|\.{2,}|\u2026", " ", text)
    return " ".join(text.replace("*", " star ").replace("#", " pound ").split()).replace(" ,", ",")


def build(files: Path, folder: Path, source: Source, language: str) -> Built:
    """Decode the prompts to FLAC and describe them as cuts.

    Args:
        files: Where the transcript and the ``.g722`` files are.
        folder: Gets ``audio/`` with the FLAC files.
        source: Speaker and transcript's name.
        language: BCP-47, and the first part of every id.
    """
    rows = read_transcript((files / source.transcript).read_text("utf-8"))
    cuts, set_aside = [], []
    for key, text in track(rows, "decoding G.722", len(rows)):
        id, path = f"{language}/{key}", f"audio/{key}.flac"
        if reason := unusable(text):
            set_aside.append(SetAside(id, reason))
            continue
        text = spoken(text)
        if not (files / f"{key}.g722").is_file():
            set_aside.append(SetAside(id, "the transcript has a row, but there is no recording"))
            continue
        try:
            wave_N = audio.decode(files / f"{key}.g722", "g722")
        except InputError as e:
            set_aside.append(SetAside(id, f"unreadable audio: {e}"))
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        audio.save_flac(folder / path, wave_N)
        cuts.append(clip(id, path, len(wave_N), text, source.speaker, language, split_of(text), PCM + audio.pcm_sha256(wave_N)))
    dropped = overlap(cuts, normaliser("english"))
    set_aside += [SetAside(cut.id, "its text stands in the test split") for cut in cuts if cut.id in dropped]
    notes = {
        "rows": len(rows),
        "split_rule": f"SHA-256 of the normalised text: test {TEST:.0%}, dev {DEV:.0%}, train the rest; equal texts share a split",
        "dropped_for_test_text": len(dropped),
        "recordings_without_text": len(list(files.rglob("*.g722"))) - sum((files / f"{key}.g722").is_file() for key, _ in rows),
    }
    return [cut for cut in cuts if cut.id not in dropped], set_aside, notes


def unusable(text: str) -> str:
    """Why a row of the transcript is no speech to learn from; empty if it is."""
    if not text:
        return "the transcript is empty"
    if re.search(r"\[.*\]", text):
        return f"the transcript marks a tone or a sign, not just speech: {text}"
    if not any(map(str.isalnum, normaliser("english")(text))):
        return f"the transcript has no words once it is normalised: {text}"
    return ""


def _sums_text(language: str) -> str:
    return resources.files("speechlab.corpora").joinpath(f"prompts.{language}.sha256").read_text("ascii")


def _source(source: Source, sums: dict[str, str], home: Path) -> Path:
    """A folder with every file of the sums, fetched if need be."""
    folder = home / "source"
    with fetch.locked(folder):
        if fetch.verify(folder, sums):
            downloads, tarball = fetch.cache() / "downloads", source.tarball.rpartition("/")[2]
            debs = " and ".join(f"{deb.name}_{deb.version}_all.deb" for deb in source.debs)
            places = {
                "Debian packages": lambda: _from_debian(source, sums, folder),
                "upstream release": lambda: _from_upstream(source, sums, folder),
            }
            by_hand = f"put {debs}, or {tarball}, into {downloads}; or give a folder with the sounds as the corpus's root"
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
        for letter in top.rglob("letters/a.g722"):  # where that is, the sounds are: packages nest them, the release does not
            shutil.copytree(letter.parents[1], part, ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".g722")],
                            dirs_exist_ok=True)  # fmt: skip
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
