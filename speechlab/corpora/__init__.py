"""Corpora by name: one module each, every one of them yields the same :class:`Corpus` of lhotse cuts.

To add one, write a module with ``prepare(language, root, max_seconds, limit) -> Corpus`` and name it in
:data:`KNOWN`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from speechlab.config import CorpusConfig
from speechlab.corpora.base import SPLITS, Corpus, SetAside, load_audio
from speechlab.errors import InputError, did_you_mean
from speechlab.units import Seconds

__all__ = ["KNOWN", "SPLITS", "Corpus", "SetAside", "configured", "load_audio", "prepare"]

KNOWN = {
    "prompts": "telephone prompts by one professional speaker, fetched on first use",
    "librispeech": "read audiobooks by many speakers, from a folder of yours",
}


def prepare(
    name: str, language: str = "en", root: str | Path | None = None, max_seconds: Seconds = 30.0, limit: int | None = None
) -> Corpus:
    """Make a corpus ready, fetched, checked, decoded and split; the second call reads what the first kept.

    Args:
        name: One of :data:`KNOWN`.
        language: BCP-47.
        root: Where the corpus lies, if it is the user's own.
        max_seconds: Longer clips are set aside.
        limit: Clips a split at most, for smoke runs.

    Raises:
        InputError: if the name or language is not known, the files cannot be had, differ from their checksums, or
            leave a split empty.
    """
    if name not in KNOWN:
        raise InputError(f'Unknown corpus "{name}".', got=name, do=did_you_mean(name, KNOWN))
    if max_seconds <= 0 or (limit is not None and limit < 1):
        raise InputError("A corpus cannot be cut to that.", got=f"max_seconds {max_seconds:g}, limit {limit}", expected="both above zero")
    module = import_module(f"speechlab.corpora.{name}")
    corpus: Corpus = module.prepare(language, root, max_seconds, limit)
    return corpus


def configured(config: CorpusConfig) -> Corpus:
    """The corpus that an experiment's config names.

    Raises:
        InputError: as for :func:`prepare`.
    """
    return prepare(config.name, config.language, config.root, config.max_seconds, config.limit)
