"""Fixtures that every test file shares: the real corpus and the real weights, fetched once into the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def prompts():
    """The English ``prompts`` corpus, prepared from its Debian package."""
    from speechlab import corpora

    return corpora.prepare("prompts", language="en")


@pytest.fixture(scope="session")
def tiny_en() -> Path:
    """A folder with Whisper tiny.en as transformers would save it."""
    from speechlab.models import weights

    return weights.resolve("whisper", "tiny.en").path
