"""FLEURS (Conneau et al., 2023) from the user's own copy, as the hub has it or as lhotse's recipe lays it out.

Notable: the tables are read here, since lhotse's recipe stops at the first row whose recording is missing. The corpus
does not tell its speakers, and none are made up: lhotse counts the readers of each sentence instead, which would pass
for as many speakers in an interval. The text is the normalised transcription; the raw one is a column.

Not covered: downloading, the packed ``audio/*.tar.gz`` of the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechlab.corpora.base import SPLITS, Entry
from speechlab.corpora.fields import located, number, told_apart
from speechlab.corpora.rows import table
from speechlab.errors import InputError
from speechlab.units import SAMPLE_RATE

LICENCE = "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)"
ATTRIBUTION = "FLEURS, A. Conneau et al., 2022 (arxiv.org/abs/2205.12446)"
COLUMNS = ("sentence", "file", "raw_text", "text", "characters", "samples", "gender")  # the tables have no header
CODES = {"zh": "cmn_hans", "yue": "yue_hant", "no": "nb", "tl": "fil"}  # where BCP-47 says it otherwise


def entries(root: Path, language: str) -> Iterator[Entry]:
    """An entry for every row of the three splits.

    Args:
        root: The folder with ``metadata/en_us/train.tsv`` and ``en_us/train/*.wav``, as lhotse writes them, or with
            ``data/en_us/train.tsv`` and ``data/en_us/audio/train/*.wav``, as the hub's archives unpack.
        language: BCP-47, or FLEURS's own name such as ``en_us``.

    Raises:
        InputError: if no table of the language lies there, or several languages fit.
    """
    places = [(root / "metadata", "{name}/{split}"), (root / "data", "data/{name}/audio/{split}"), (root, "{name}/audio/{split}")]
    wanted = language.lower().replace("-", "_")
    wanted = CODES.get(wanted, wanted)
    here: set[str] = set()
    for folder, sounds in places:
        names = sorted({path.parent.name for split in SPLITS for path in folder.glob(f"*/{split}.tsv")})
        fit = [name for name in names if name == wanted] or [name for name in names if name.startswith(f"{wanted}_")]
        here.update(names)
        if len(fit) == 1:
            below = {split: sounds.format(name=fit[0], split=split) for split in SPLITS}
            return told_apart(_rows(folder / fit[0], below, root, language))
        if fit:
            break
    found = ", ".join(sorted(here)) or "no language"
    raise InputError(f'FLEURS is not there in "{language}", or is more than once.', got=f"{root} with {found}",
                     expected="metadata/en_us/train.tsv or data/en_us/train.tsv",
                     do="name the language as FLEURS does, or set the root")  # fmt: skip


def _rows(folder: Path, sounds: dict[str, str], root: Path, language: str) -> Iterator[Entry]:
    for split in (split for split in SPLITS if (folder / f"{split}.tsv").is_file()):
        for cells, line in table(folder / f"{split}.tsv", "\t", quoted=False):
            place = f"{split}.tsv:{line.number}"
            if line.problem or len(cells) != len(COLUMNS):
                problem = line.problem or f"{len(cells)} cells; expected {len(COLUMNS)}: {', '.join(COLUMNS)}"
                yield Entry(place, None, "", "", language, split, problem=problem)
                continue
            row = dict(zip(COLUMNS, (cell.strip() for cell in cells), strict=True))
            audio, problem = located(f"{sounds[split]}/{row['file']}" if row["file"] else "", root)
            samples, wrong = number(row["samples"], "number of samples", 1, 86_400 * SAMPLE_RATE)
            problems = [problem, wrong, "" if row["text"] else "the text is empty"]
            columns = {name: row[name] for name in ("sentence", "raw_text", "gender") if row[name]}
            duration = None if samples is None else samples / SAMPLE_RATE
            yield Entry(Path(row["file"]).stem or place, audio, row["text"], "", language, split, duration,
                        problem="; ".join(filter(None, problems)), columns=columns)  # fmt: skip
