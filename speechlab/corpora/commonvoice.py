"""Mozilla Common Voice (Ardila et al., 2020) from the user's own copy: ``<language>/{train,dev,test}.tsv`` and ``clips/``.

Notable: the tables are read here and not by lhotse's recipe, which drops rows without a clip, opens every MP3 file on
the way, and fails on releases that lack a column. Lines are not quoted: the texts hold lone quotation marks. A truncated MP3
decodes without an error, so durations are taken from ``clip_durations.tsv`` where the release has one. Speakers are
``client_id``; age, gender, accents and whatever else a release says are kept as columns.

Not covered: ``validated.tsv``, ``other.tsv`` and ``invalidated.tsv``, which hold the three splits or are unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import SPLITS, Entry
from speechlab.corpora.fields import Lookup, located, number, told_apart
from speechlab.corpora.rows import records
from speechlab.errors import InputError

LICENCE = "CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/)"
ATTRIBUTION = "Mozilla Common Voice, R. Ardila et al., 2020 (commonvoice.mozilla.org)"
NEEDED = ("client_id", "path", "sentence")


def entries(root: Path, language: str) -> Iterator[Entry]:
    """An entry for every row of the three splits.

    Args:
        root: The folder of a release, or that of the language in it.
        language: As Common Voice calls it, ``en`` or ``zh-CN``.

    Raises:
        InputError: if no split of the language lies there, or a table lacks a column.
    """
    folder = next((f for f in (root / language, root) if any((f / f"{split}.tsv").is_file() for split in SPLITS)), None)
    if folder is None:
        here = sorted(path.parent.name for path in root.glob("*/train.tsv"))
        raise InputError(f'Common Voice is not there in "{language}".', got=f"{root} with {', '.join(here) or 'no language'}",
                         expected=f"{language}/train.tsv, dev.tsv, test.tsv and clips",
                         do="unpack the language there, or set the root")  # fmt: skip
    return told_apart(_rows(folder, root, language))


def _rows(folder: Path, root: Path, language: str) -> Iterator[Entry]:
    lasting = Lookup()
    if (folder / "clip_durations.tsv").is_file():
        for row in records(folder / "clip_durations.tsv", "\t", quoted=False, needed=("clip",)):
            lengths = [value for name, value in row.values.items() if name.startswith("duration")]
            if "clip" in row.values and lengths:
                lasting.put("ms", row.values["clip"], lengths[0])
    for split in (split for split in SPLITS if (folder / f"{split}.tsv").is_file()):
        for row in records(folder / f"{split}.tsv", "\t", quoted=False, needed=NEEDED):
            columns = {name: value for name, value in row.values.items() if name not in NEEDED and value}
            clip, text = row.values.get("path", ""), row.values.get("sentence", "").strip()
            problems, duration = [row.problem], None
            audio = None
            if "path" in row.values:
                name = clip if Path(clip).suffix or not clip else f"{clip}.mp3"  # the first releases leave the suffix out
                audio, problem = located(f"clips/{name}" if name else "", root, (folder,))
                problems += [problem]
                if (ms := lasting.get("ms", name)) is not None:
                    length, problem = number(ms, "duration in ms", 1.0, 1e8)
                    duration, problems = None if length is None else length / 1000, [*problems, problem]
            if not row.problem and not text:
                problems.append("the text is empty")
            yield Entry(Path(clip).stem or row.place, audio, text, row.values.get("client_id", ""), language, split, duration,
                        problem="; ".join(filter(None, problems)), columns=columns)  # fmt: skip
