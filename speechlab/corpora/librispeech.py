"""LibriSpeech (Panayotov et al., 2015) from the user's own copy, by lhotse's recipe.

Notable: the official splits: train is every ``train-*`` that is there, dev is ``dev-clean``, test is ``test-clean``.
A clip's digest is the MD5 of the samples that each FLAC file carries in its header, so that a thousand hours need
not be decoded to describe them. Texts of the test set that also stand in train are counted, not dropped: the
splits are the literature's.

Not covered: downloading, the ``other`` sets as test, alignments.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from speechlab import fetch
from speechlab.corpora.base import Built, Corpus, SetAside, assemble, clip, overlap, prepared
from speechlab.errors import InputError, did_you_mean
from speechlab.progress import track
from speechlab.units import SAMPLE_RATE, Seconds

LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)"
ATTRIBUTION = "LibriSpeech ASR corpus, V. Panayotov, G. Chen, D. Povey and S. Khudanpur, 2015 (openslr.org/12)"


def prepare(language: str, root: str | Path | None, max_seconds: Seconds, limit: int | None) -> Corpus:
    """Describe the LibriSpeech that lies under a folder.

    Args:
        language: ``en``.
        root: The folder ``LibriSpeech``, or the one that holds it.
        max_seconds: Longer clips are set aside.
        limit: Clips a split at most.

    Raises:
        InputError: if the root is missing or lacks train, ``dev-clean`` or ``test-clean``.
    """
    if language != "en":
        raise InputError(f'LibriSpeech is not there in "{language}".', got=language, do=did_you_mean(language, ["en"]))
    folder = _root(root)
    parts = {path.name: "train" for path in sorted(folder.glob("train-*")) if path.is_dir()} | {"dev-clean": "dev", "test-clean": "test"}
    missing = [part for part in parts if not (folder / part).is_dir()] + ["train-*"] * ("train" not in parts.values())
    if missing:
        raise InputError("LibriSpeech is not whole.", got=f"{folder} without {', '.join(missing)}",
                         expected="at least one train-*, dev-clean and test-clean", do="get the rest from openslr.org/12")  # fmt: skip
    texts = {part: sorted((folder / part).rglob("*.trans.txt")) for part in parts}
    state = hashlib.sha256(str(folder).encode())
    for path in (path for paths in texts.values() for path in paths):
        state.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    kept = fetch.cache() / "corpora" / "librispeech" / state.hexdigest()[:12]
    return assemble("librispeech", "en", LICENCE, ATTRIBUTION, prepared(kept, lambda _: build(folder, parts, texts)), max_seconds, limit)


def build(folder: Path, parts: dict[str, str], texts: dict[str, list[Path]]) -> Built:
    """Describe every utterance as a cut.

    Args:
        folder: That holds the parts.
        parts: Split of each part.
        texts: The ``.trans.txt`` files of each part.
    """
    from lhotse.recipes.librispeech import parse_utterance  # type: ignore[import-untyped]

    rows = [(part, line.strip()) for part, paths in texts.items() for path in paths for line in path.read_text("utf-8").splitlines()]
    rows = [(part, line) for part, line in rows if line]
    cuts, set_aside = [], []
    for part, line in track(rows, "reading LibriSpeech", len(rows)):
        id, _, text = line.partition(" ")
        if not text:
            set_aside.append(SetAside(id, "the transcript is empty"))
            continue
        try:
            found = parse_utterance(folder / part, line, {})
            if found is None:
                set_aside.append(SetAside(id, "the transcript has a row, but there is no recording"))
                continue
            recording, said = found
            path = recording.sources[0].source
            digest = _flac_md5(path)
        except Exception as e:
            set_aside.append(SetAside(id, f"unreadable audio: {e}"))
            continue
        if recording.sampling_rate != SAMPLE_RATE or recording.num_channels != 1:
            set_aside.append(SetAside(id, f"{recording.sampling_rate} Hz, {recording.num_channels} channels; expected 16 kHz mono"))
            continue
        cuts.append(clip(id, path, recording.num_samples, said.text, said.speaker, "en", parts[part], digest))
    notes = {
        "rows": len(rows),
        "parts": dict(parts),
        "split_rule": "the corpus's own: train-*, dev-clean, test-clean",
        "shared_with_test_text": len(overlap(cuts, str)),
    }
    return cuts, set_aside, notes


def _root(root: str | Path | None) -> Path:
    do = "download it from openslr.org/12, unpack it, and set corpus.root to the folder LibriSpeech"
    if root is None:
        raise InputError("LibriSpeech needs a root.", expected="the folder where it lies", do=do)
    folder = Path(root).expanduser().resolve()
    if not folder.is_dir():
        raise InputError("The root of LibriSpeech does not exist.", got=str(root), expected="the folder where it lies", do=do)
    return folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder


def _flac_md5(path: str) -> str:
    """The MD5 of the samples, from the STREAMINFO block that opens every FLAC file (RFC 9639, section 8.2)."""
    with open(path, "rb") as f:
        head = f.read(42)
    if head[:4] != b"fLaC" or len(head) < 42:
        raise ValueError("not a FLAC file")
    return f"flac-md5:{head[26:42].hex()}"
