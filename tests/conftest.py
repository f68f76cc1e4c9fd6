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
def store(tmp_path_factory) -> Path:
    """A SQLite store without anything in it, to be copied: to make one takes MLflow seconds."""
    from speechlab import versions

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    versions.connect(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture(scope="session")
def tiny_en() -> Path:
    """A folder with Whisper tiny.en as transformers would save it."""
    from speechlab.models import weights

    return weights.resolve("whisper", "tiny.en").path


@pytest.fixture(scope="session")
def small_whisper(tiny_en, tmp_path_factory) -> Path:
    """A folder with a Whisper of 2 layers, random weights and tiny.en's tokenizer: for tests of the way, not of the weights.

    It ends after a word or two, which saves decoding time: the end token's embedding lies along the decoder's last bias.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizerFast

    size = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    folder = tmp_path_factory.mktemp("small-whisper")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(tiny_en, **size, **heads))
    with torch.no_grad():
        net.model.decoder.layer_norm.bias.fill_(0.5)
        net.model.decoder.embed_tokens.weight[net.config.eos_token_id] = 0.1
    net.generation_config = GenerationConfig.from_pretrained(tiny_en)
    net.save_pretrained(folder)
    WhisperTokenizerFast.from_pretrained(tiny_en).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((tiny_en / "preprocessor_config.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def chrome():
    """Chromium, for the tests of a file."""
    from browser import chromium

    with chromium() as running:
        yield running


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names of bytes by their length: archives hold the time they were made, and xdist's workers must find equal names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
