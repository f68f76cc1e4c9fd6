"""Corpora by name: one module each, every one of them yields the same :class:`Corpus` of lhotse cuts.

To add one, write a module with ``entries(root, language) -> Iterator[Entry]`` that gives an entry for every row of its
input, and name it in :data:`KNOWN` and :data:`READERS`; checking, splitting and keeping are done for it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from speechlab.config import CorpusConfig, corpus_section
from speechlab.corpora.base import SPLITS, Corpus, Entry, SetAside, load_audio
from speechlab.errors import InputError, did_you_mean
from speechlab.units import Seconds

__all__ = ["KNOWN", "SPLITS", "Corpus", "Entry", "SetAside", "configured", "entries", "load_audio", "prepare"]

KNOWN = {
    "prompts": "telephone prompts in five languages by a professional speaker each, fetched on first use",
    "librispeech": "read audiobooks by many speakers, from a folder of yours",
    "commonvoice": "Mozilla Common Voice: sentences read by volunteers, from a folder of yours",
    "fleurs": "FLEURS: read sentences in 102 languages, from a folder of yours",
    "tedlium": "TED-LIUM 3: talks, from a folder of yours",
    "coraal": "CORAAL: conversations in African American Language, from a folder of yours",
    "own": "your own speech: a folder, CSV or TSV, JSON lines, Parquet, Kaldi or lhotse, told by its files",
    "shards": "what speechlab corpus ingest wrote",
}
READERS = ("commonvoice", "fleurs", "tedlium", "coraal", "own")  # those that are read row by row


def prepare(
    name: str, language: str = "en", root: str | Path | None = None, max_seconds: Seconds = 30.0, limit: int | None = None, **more: Any
) -> Corpus:
    """Make a corpus ready, fetched, checked, decoded and split; the second call reads what the first kept.

    Args:
        name: One of :data:`KNOWN`.
        language: BCP-47.
        root: Where the corpus lies, if it is the user's own.
        max_seconds: Longer clips are set aside.
        limit: Clips a split at most, for smoke runs.
        more: Other fields of :class:`speechlab.config.CorpusConfig`, such as ``voice``, ``band``, ``trim`` or ``check``.

    Raises:
        InputError: if the name or language is not known, the files cannot be had, differ from their checksums, or
            leave a split empty.
    """
    where = None if root is None else str(root)
    return configured(corpus_section(name=name, language=language, root=where, max_seconds=max_seconds, limit=limit, **more))


def configured(config: CorpusConfig) -> Corpus:
    """The corpus that an experiment's config names, with its user's decisions, trimmed and levelled as it says.

    Several languages, separated by commas, are prepared one after another and joined.

    Raises:
        InputError: as for :func:`prepare`.
    """
    from speechlab.corpora import base, build, conditioning, decisions

    if "," in config.language:
        languages = [language.strip() for language in config.language.split(",")]
        return base.joined([configured(config.model_copy(update={"language": language})) for language in languages])

    module = _module(config)
    if config.name in READERS:
        corpus = build.prepare(config, _reader(module, config), getattr(module, "LICENCE", ""), getattr(module, "ATTRIBUTION", ""))
    elif config.name == "shards":
        corpus = module.prepare(config)
    elif config.name == "prompts":
        corpus = module.prepare(config.language, config.root, config.max_seconds, config.limit, config.voice, config.band)
    else:
        corpus = module.prepare(config.language, config.root, config.max_seconds, config.limit)
    if config.decisions is not None:
        corpus = decisions.decided(corpus, Path(config.decisions).expanduser())
    return conditioning.conditioned(corpus, config)


def entries(config: CorpusConfig) -> tuple[Callable[[], Iterator[Entry]], str, str]:
    """Every row of a corpus as it was found, for the check and the ingestion.

    Returns:
        What gives the entries, as often as it is asked; the licence; whom to name.

    Raises:
        InputError: as for :func:`prepare`.
    """
    module = _module(config)
    if config.name == "shards":  # the tars hold what the listing of their clips points into
        module = import_module("speechlab.corpora.own")
        config = config.model_copy(update={"root": f"{config.root}/shards"})
    if config.name in (*READERS, "shards"):
        return _reader(module, config), getattr(module, "LICENCE", ""), getattr(module, "ATTRIBUTION", "")
    # the others decode as they prepare; what they left out comes back as entries with a problem
    corpus = configured(
        config.model_copy(update={"limit": None, "max_seconds": 30.0, "trim": None, "level": "recorded", "decisions": None})
    )
    return partial(_of_corpus, corpus), corpus.licence, corpus.attribution


def _module(config: CorpusConfig) -> ModuleType:
    if config.name not in KNOWN:
        raise InputError(f'Unknown corpus "{config.name}".', got=config.name, do=did_you_mean(config.name, KNOWN))
    return import_module(f"speechlab.corpora.{config.name}")


def _reader(module: ModuleType, config: CorpusConfig) -> Callable[[], Iterator[Entry]]:
    if config.root is None:
        raise InputError(f'The corpus "{config.name}" needs a root.', expected=f"the folder where it lies: {KNOWN[config.name]}",
                         do="set corpus.root")  # fmt: skip
    root = Path(config.root).expanduser().resolve()
    if not root.exists():
        raise InputError("The root of the corpus does not exist.", got=config.root, expected="a folder, or a table",
                         do="download it, unpack it, and set corpus.root")  # fmt: skip
    return partial(module.entries, root, config.language)


def _of_corpus(corpus: Corpus) -> Iterator[Entry]:
    for split in SPLITS:
        for cut in corpus.cuts[split]:
            (said,) = cut.supervisions
            where = Path(cut.recording.sources[0].source)
            yield Entry(cut.id, where, said.text, said.speaker or "", said.language or "", split, cut.recording.duration)
    for row in corpus.set_aside:
        yield Entry(row.id, None, "", problem=row.reason)
