"""What every corpus is made of: lhotse cuts by split, what was set aside and why, and a manifest with a hash.

Notable: nothing is left out in silence (clips kept, set aside and beyond a limit add up to the rows of the
input), and a clip that carries a digest of its samples is checked against it each time it is loaded.

Not covered: cuts that mix or join recordings, several channels.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechlab import audio, fetch
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE, Samples, Seconds

if TYPE_CHECKING:  # lhotse loads torch, and `import speechlab.corpora` stays light
    from lhotse import CutSet, MonoCut  # type: ignore[import-untyped]

SPLITS = ("train", "dev", "test")
PCM = "pcm-sha256:"  # before a digest by audio.pcm_sha256


@dataclass(frozen=True)
class SetAside:
    """A row of the input that became no clip, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """A row of a corpus as it was found; nothing it says is believed yet.

    What is wrong with a row is noted, not raised: a reader gives an entry for every row of its input.

    Attributes:
        id: Of the clip; from outside, so no path is made of it unchecked.
        audio: A file, or its bytes where a table carries them; None if there is none.
        text: What is said, as the corpus has it.
        speaker: Who says it; empty if the corpus does not tell.
        language: BCP-47.
        split: One of :data:`SPLITS`, or empty where the corpus has none and a rule decides.
        duration: Seconds, as the corpus says.
        start: Where the clip begins in the file, in seconds; with ``duration`` it is a part of it.
        channel: Which channel of the file; None averages them.
        format: FFmpeg's name, for files without a header.
        problem: Why the row cannot become a clip; empty if nothing is known against it.
        columns: What else the corpus says, such as accent, age or gender: strata of an evaluation.
    """

    id: str
    audio: Path | bytes | None
    text: str
    speaker: str = ""
    language: str = "en"
    split: str = ""
    duration: Seconds | None = None
    start: Seconds | None = None
    channel: int | None = None
    format: str | None = None
    problem: str = ""
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """Speech with its texts, ready for training and evaluation.

    Attributes:
        name: As given to ``prepare``.
        language: BCP-47.
        cuts: ``train``, ``dev`` and ``test``, each sorted by id; a cut is a whole 16 kHz mono file with one
            supervision (text, speaker, language).
        licence: Under which the recordings may be used.
        attribution: Who is to be named wherever they are.
        set_aside: Rows that are no clips, with reasons.
        notes: Counts and remarks; ``rows`` of the input, clips ``beyond_limit``.
        manifest_sha256: Over the lines of :attr:`manifest`, each ended by a newline.
    """

    name: str
    language: str
    cuts: dict[str, CutSet]
    licence: str
    attribution: str
    set_aside: list[SetAside]
    notes: dict[str, Any]
    manifest_sha256: str

    @property
    def manifest(self) -> list[str]:
        """A line of canonical JSON for every clip."""
        return manifest([cut for split in SPLITS for cut in self.cuts[split]])

    @property
    def clips(self) -> dict[str, int]:
        """Clips in each split."""
        return {split: len(self.cuts[split]) for split in SPLITS}

    @property
    def seconds(self) -> dict[str, Seconds]:
        """Seconds of audio in each split."""
        return {split: sum(cut.duration for cut in self.cuts[split]) for split in SPLITS}


def load_audio(cut: MonoCut) -> audio.Wave:
    """The samples of a cut.

    Args:
        cut: Of a :class:`Corpus`.

    Returns:
        ``wave_N``, 16 kHz, float32, full scale 1.

    Raises:
        InputError: if the file is missing, damaged, of another duration than the manifest says, or holds other
            samples than when the corpus was prepared.
    """
    custom, source = cut.custom or {}, cut.recording.sources[0].source
    if "member" in custom:  # of a shard: its place in the archive
        with open(source, "rb") as f:
            f.seek(custom["member"][0])
            source = f.read(custom["member"][1])
    wave_N = audio.decode(source, expected_seconds=cut.recording.duration)
    expected = custom.get("audio", "")
    if expected.startswith(PCM) and (got := PCM + audio.pcm_sha256(wave_N)) != expected:
        raise InputError("A clip holds other samples than when its corpus was prepared.", got=f"{cut.id}: {got}", expected=expected,
                         do=f"delete {cut.recording.sources[0].source} and prepare the corpus again")  # fmt: skip
    start = round(cut.start * SAMPLE_RATE)
    wave_N = wave_N[start : start + round(cut.duration * SAMPLE_RATE)]
    return wave_N * np.float32(10 ** (custom["gain"] / 20)) if "gain" in custom else wave_N


def origin(cut: MonoCut, sample: Samples) -> tuple[str, Samples]:
    """Where a sample of a clip stands in the file that it came from, before it was cut out, resampled or trimmed.

    Args:
        cut: Of a :class:`Corpus`.
        sample: Position in what :func:`load_audio` gives, at 16 kHz.

    Returns:
        The file, and the nearest sample at the file's own rate.
    """
    source = (cut.custom or {}).get("source") or {"path": cut.recording.sources[0].source, "rate": SAMPLE_RATE, "start": 0.0}
    return source["path"], round((source["start"] + cut.start + sample / SAMPLE_RATE) * source["rate"])


def clip(
    id: str, path: str, samples: int, text: str, speaker: str, language: str, split: str, digest: str, columns: dict[str, str] | None = None
) -> MonoCut:
    """A cut over a whole 16 kHz mono file, with its one supervision.

    Args:
        id: Of the clip.
        path: Of the file; relative to the folder of :func:`prepared`, or absolute.
        samples: How many the file has.
        text: What is said.
        speaker: Who says it.
        language: BCP-47.
        split: One of :data:`SPLITS`.
        digest: Of the audio, with the kind before a colon.
        columns: What else the corpus says of it.
    """
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    seconds = samples / SAMPLE_RATE
    recording = Recording(id, [AudioSource("file", [0], path)], SAMPLE_RATE, samples, seconds)
    said = SupervisionSegment(id, id, 0.0, seconds, 0, text, language, speaker)
    custom = {"split": split, "audio": digest} | ({"columns": columns} if columns else {})
    return MonoCut(id, 0.0, seconds, 0, [said], recording=recording, custom=custom)


def manifest(cuts: Iterable[MonoCut]) -> list[str]:
    """A line of canonical JSON for every cut: id, split, duration, text, speaker, language and digest of the audio.

    Where they are, also the gain in dB, the seconds trimmed off the start, and the corpus's own columns.
    """
    lines = []
    for cut in cuts:
        (said,) = cut.supervisions
        row = {"id": cut.id, "split": cut.custom["split"], "duration": round(cut.duration, 6), "text": said.text,
               "speaker": said.speaker, "language": said.language, "audio": cut.custom["audio"]}  # fmt: skip
        row |= {name: cut.custom[name] for name in ("gain", "columns") if name in cut.custom}
        row |= {"start": round(cut.start, 6)} if cut.start else {}
        lines.append(json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":")))
    return lines


Built = tuple[list["MonoCut"], list[SetAside], dict[str, Any]]


def prepared(folder: Path, build: Callable[[Path], Built]) -> Built:
    """What ``build`` made, now or in an earlier call.

    Args:
        folder: Where it is kept; its name changes with whatever the result depends on.
        build: Makes cuts, rows set aside and notes, and may write audio into the folder it is given.

    Returns:
        Cuts whose paths are absolute, rows set aside, notes.
    """
    if built := _read(folder):
        return built
    with fetch.locked(folder):
        if built := _read(folder):
            return built
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        cuts, set_aside, notes = build(part)
        with gzip.open(part / "cuts.jsonl.gz", "wt", encoding="utf-8") as f:
            f.writelines(json.dumps(cut.to_dict(), ensure_ascii=False) + "\n" for cut in cuts)
        (part / "manifest.jsonl").write_text("".join(line + "\n" for line in manifest(cuts)), "utf-8")
        state = {"set_aside": [asdict(row) for row in set_aside], "notes": notes}
        (part / "state.json").write_text(json.dumps(state, ensure_ascii=False, indent=1), "utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
        built = _read(folder)
    assert built, f"{folder} was just written"
    return built


def assemble(name: str, language: str, licence: str, attribution: str, built: Built, max_seconds: Seconds, limit: int | None) -> Corpus:
    """A corpus from what was prepared: clips that are too long set aside, splits cut to the limit, the manifest hashed.

    Args:
        name: Of the corpus.
        language: BCP-47.
        licence: Of the recordings.
        attribution: Whom to name.
        built: From :func:`prepared`.
        max_seconds: Longer clips are set aside.
        limit: Clips a split at most: the first by the hash of their id, so that they are a sample of it.

    Raises:
        InputError: if a split is empty.
    """
    from lhotse import CutSet

    clips, set_aside, notes = built
    long = [cut for cut in clips if cut.duration > max_seconds]
    set_aside = set_aside + [SetAside(cut.id, f"longer than max_seconds {max_seconds:g}: {cut.duration:.2f} s") for cut in long]
    cuts, beyond = {}, 0
    for split in SPLITS:
        fit = [cut for cut in clips if cut.custom["split"] == split and cut.duration <= max_seconds]
        kept = sorted(fit, key=lambda cut: hashlib.sha256(cut.id.encode()).digest())[:limit]
        beyond += len(fit) - len(kept)
        if not kept:
            raise InputError(f"The {split} split of {name} is empty.", got=f"{len(long)} clips over max_seconds {max_seconds:g}",
                             expected="at least one clip", do="raise max_seconds, or see set_aside for what was left out")  # fmt: skip
        cuts[split] = CutSet.from_cuts(sorted(kept, key=lambda cut: cut.id))
    set_aside.sort(key=lambda row: row.id)
    return Corpus(name, language, cuts, licence, attribution, set_aside, {**notes, "beyond_limit": beyond}, _identity(cuts))


def changed(
    corpus: Corpus, cuts: dict[str, list[MonoCut]], set_aside: Sequence[SetAside] = (), notes: dict[str, Any] | None = None
) -> Corpus:
    """A corpus with other cuts in its splits, its manifest hashed anew.

    Raises:
        InputError: if a split is empty.
    """
    from lhotse import CutSet

    for split in SPLITS:
        if not cuts[split]:
            raise InputError(f"The {split} split of {corpus.name} is empty.", got="0 clips", expected="at least one clip")
    aside = sorted([*corpus.set_aside, *set_aside], key=lambda row: row.id)
    sets = {split: CutSet.from_cuts(cuts[split]) for split in SPLITS}
    return replace(corpus, cuts=sets, set_aside=aside, notes={**corpus.notes, **(notes or {})}, manifest_sha256=_identity(sets))


def joined(corpora: Sequence[Corpus]) -> Corpus:
    """Several corpora as one, each clip in the split that it has.

    Args:
        corpora: At least one; ids of clips differ between them.

    Raises:
        InputError: if two clips have one id.
    """
    from lhotse import CutSet

    cuts = {split: [cut for corpus in corpora for cut in corpus.cuts[split]] for split in SPLITS}
    seen: set[str] = set()
    for cut in (cut for split in SPLITS for cut in cuts[split]):
        if cut.id in seen:
            raise InputError("Two clips of joined corpora have the same id.", got=cut.id, expected="ids that tell them apart",
                             do="name each language once; put the language into the ids of your corpora")  # fmt: skip
        seen.add(cut.id)
    sets = {split: CutSet.from_cuts(sorted(cuts[split], key=lambda cut: cut.id)) for split in SPLITS}
    names, languages, licences, attributions = (
        list(dict.fromkeys(getattr(corpus, field) for corpus in corpora)) for field in ("name", "language", "licence", "attribution")
    )
    aside = sorted((row for corpus in corpora for row in corpus.set_aside), key=lambda row: row.id)
    notes = {corpus.language: corpus.notes for corpus in corpora}
    return Corpus(" + ".join(names), ",".join(languages), sets, "; ".join(licences), "; ".join(attributions), aside, notes, _identity(sets))


def _identity(cuts: dict[str, CutSet]) -> str:
    return lines_sha256(manifest([cut for split in SPLITS for cut in cuts[split]]))


def lines_sha256(lines: Iterable[str]) -> str:
    """SHA-256 over the lines of a manifest, each ended by a newline."""
    return hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()


def overlap(cuts: Sequence[MonoCut], key: Callable[[str], str]) -> set[str]:
    """Ids of the train and dev clips whose text, under ``key``, stands in the test split."""
    tested = {key(cut.supervisions[0].text) for cut in cuts if cut.custom["split"] == "test"}
    return {cut.id for cut in cuts if cut.custom["split"] != "test" and key(cut.supervisions[0].text) in tested}


def _read(folder: Path) -> Built | None:
    """What is kept in a folder; None if nothing is, or audio that belongs into it is gone."""
    from lhotse import MonoCut

    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        with gzip.open(folder / "cuts.jsonl.gz", "rt", encoding="utf-8") as f:
            rows = [json.loads(line) for line in f]
    except OSError:
        return None
    cuts = []
    for row in rows:
        (source,) = row["recording"]["sources"]
        path = Path(source["source"])
        if not path.is_absolute():
            path = folder / path
            if not path.exists():
                return None
        source["source"] = str(path)
        cuts.append(MonoCut.from_dict(row))
    return cuts, [SetAside(**row) for row in state["set_aside"]], state["notes"]
