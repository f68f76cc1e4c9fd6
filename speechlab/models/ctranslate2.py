"""Read CTranslate2's ``model.bin`` of a Whisper model and write it as transformers would save it.

Notable: the file is untrusted, so every count and size is held against the file's length before it
is used, and the outcome against the model class itself: no weight missing, none left over, every
shape as transformers expects it. fp16 values become the same values in fp32: nothing is lost.

Not covered: quantised files (int8 has lost bits that training needs), other architectures, other
versions of the binary format than 6 (CTranslate2 2.0 and later write it).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechlab.errors import InputError

VERSION, SPEC, REVISION = 6, "WhisperSpec", 3
MAX_RANK = 3  # a convolution's kernel
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
FLOATS = ("<f4", "<f2")

# CTranslate2's name of a part, and what transformers calls it. Rows that CTranslate2 fuses into one
# matrix are dealt out equally, in this order; heads lie side by side in both.
STEM = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.layer_norm",
    "encoder/position_encodings": "encoder.embed_positions",
    "decoder/embeddings": "decoder.embed_tokens",
    "decoder/layer_norm": "decoder.layer_norm",
    "decoder/position_encodings": "decoder.embed_positions",
}
BLOCK = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
KIND = {"weight": "weight", "gamma": "weight", "encodings": "weight", "bias": "bias", "beta": "bias"}

# Switches of the architecture, and the only value that transformers' Whisper has for each.
SWITCHES = {
    "decoder/activation": 3,  # exact GELU
    "decoder/alibi": 0,
    "decoder/alignment_layer": -1,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "decoder/alibi_use_positive_positions": 0,
    "decoder/scale_alibi": 0,
}
NEWER = {"decoder/alibi_use_positive_positions", "decoder/scale_alibi"}  # switches that files of older converters do not have
NEEDED = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>")  # tokens
SCALARS = {*SWITCHES, "decoder/alignment_heads", "decoder/num_heads", "encoder/num_heads"}
ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}  # the output layer is the embedding


@dataclass(frozen=True)
class Binary:
    """What a ``model.bin`` holds.

    Attributes:
        variables: Arrays by CTranslate2's name, views of the file on disk.
        aliases: Second names of variables.
    """

    variables: dict[str, np.ndarray]
    aliases: dict[str, str]


def read(path: str | Path) -> Binary:
    """Read the variables of a CTranslate2 Whisper file without copying them into memory.

    Format after ``Model::load`` of CTranslate2 (src/models/model.cc), little-endian.

    Args:
        path: A ``model.bin``.

    Raises:
        InputError: if the file is truncated, has bytes left over, is of another version or
            architecture, or any count or size in it does not fit.
    """
    path = Path(path)
    if not path.is_file() or not path.stat().st_size:
        raise InputError("The CTranslate2 model file is missing or empty.", got=str(path), expected="a model.bin")
    file = _Reader(path)
    if (version := file.number("I")) != VERSION:
        raise InputError(f"{path} is not a CTranslate2 model of a known version.", got=f"version {version}", expected=f"version {VERSION}")
    spec, revision = file.text(), file.number("I")
    if (spec, revision) != (SPEC, REVISION):
        raise InputError(f"{path} is not a Whisper model.", got=f"{spec!r} revision {revision}", expected=f"{SPEC!r} revision {REVISION}")
    variables: dict[str, np.ndarray] = {}
    for _ in range(file.number("I")):  # a false count meets the end of the file, it does not allocate
        name = file.text()
        if name in variables:
            raise file.bad(f"variable {name!r} twice", "each variable once")
        variables[name] = file.array(name)
    aliases = {file.text(): file.text() for _ in range(file.number("I"))}
    if file.at != len(file.bytes_N):
        raise file.bad(f"{len(file.bytes_N) - file.at} bytes after the last entry", "the end of the file")
    return Binary(variables, aliases)


class _Reader:
    """A cursor over a file's bytes that never reads past their end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_N = np.memmap(path, dtype=np.uint8, mode="r")
        self.at = 0

    def take(self, count: int) -> np.ndarray:
        left = len(self.bytes_N) - self.at
        if count > left:
            raise self.bad(f"{left} bytes left where {count} are announced", "a complete file")
        self.at += count
        return self.bytes_N[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize(code)).tobytes())[0])

    def text(self) -> str:
        raw = self.take(self.number("H")).tobytes()
        if not raw.endswith(b"\0") or not raw[:-1].isascii() or not raw[:-1].decode("ascii").isprintable():
            raise self.bad(f"the name {raw[:40]!r}", "printable ASCII, NUL at its end")
        return raw[:-1].decode("ascii")

    def array(self, name: str) -> np.ndarray:
        rank = self.number("B")
        if rank > MAX_RANK:
            raise self.bad(f"{name!r} of rank {rank}", f"a rank of at most {MAX_RANK}")
        shape = tuple(self.number("I") for _ in range(rank))
        code, size = self.number("B"), self.number("I")
        if code not in DTYPES:
            raise self.bad(f"{name!r} of type {code}", f"one of the types {', '.join(map(str, DTYPES))}")
        dtype = np.dtype(DTYPES[code])
        if math.prod(shape) * dtype.itemsize != size or 0 in shape:
            raise self.bad(f"{name!r} of shape {shape} in {size} bytes", f"{math.prod(shape) * dtype.itemsize} bytes, no empty dimension")
        return self.take(size).view(dtype).reshape(shape)

    def bad(self, got: str, expected: str) -> InputError:
        return InputError(f"{self.path} is damaged at byte {self.at}.", got=got, expected=expected, do="fetch the file again")


def state_dict(binary: Binary) -> dict[str, np.ndarray]:
    """The weights under transformers' names, fp32; the output layer is tied and so left out.

    Raises:
        InputError: if the file holds a variable that has no place in transformers' Whisper, a
            quantised or non-finite one, or a switch whose value transformers does not have.
    """
    for name, expected in SWITCHES.items():
        value = binary.variables.get(name)
        if value is None and name in NEWER:
            continue
        if value is None or value.ndim or int(value) != expected:
            got = f"{name} = {value}"
            raise InputError("The model is not built as transformers' Whisper.", got=got, expected=str(expected))
    if binary.aliases != ALIASES:
        raise InputError("The CTranslate2 model's output layer is not its embedding.", got=f"{binary.aliases}", expected=f"{ALIASES}")
    weights: dict[str, np.ndarray] = {}
    for name, array in binary.variables.items():
        if name in SCALARS:
            continue
        if array.dtype.str not in FLOATS:
            got = str(array.dtype)
            raise InputError(f"The variable {name} is quantised.", got=got, expected="fp16 or fp32", do="convert the model anew, as fp16")
        values = array.astype(np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"The variable {name} holds NaN or infinity.", expected="finite weights", do="fetch the file again")
        weights |= _rename(name, values)
    return weights


def _rename(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    part, _, kind = name.rpartition("/")
    block = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)", part)
    if kind in KIND and part in STEM:
        return {f"model.{STEM[part]}.{KIND[kind]}": values}
    if kind not in KIND or block is None or block[3] not in BLOCK or not values.ndim:
        raise InputError("The CTranslate2 model holds a variable that Whisper does not have.", got=name)
    stem, targets = f"model.{block[1]}.layers.{block[2]}", BLOCK[block[3]]
    if len(values) % len(targets):
        raise InputError(f"The fused variable {name} cannot be split.", got=f"{len(values)} rows", expected=f"a multiple of {len(targets)}")
    dealt = {f"{stem}.{target}.{KIND[kind]}": rows for target, rows in zip(targets, np.split(values, len(targets)), strict=True)}
    for key in [key for key in dealt if key.endswith("k_proj.bias")]:  # a key's bias cancels in the softmax, Whisper has none
        if dealt.pop(key).any():
            raise InputError(f"The key bias in {name} is not zero.", expected="zeros: Whisper's keys have no bias")
    return dealt


def convert(model: str | Path, source: str | Path, dest: str | Path) -> None:
    """Write a folder that transformers' ``from_pretrained`` loads, from a CTranslate2 model.

    Args:
        model: The ``model.bin``.
        source: Folder of its ``config.json`` (suppressed tokens, alignment heads) and ``tokenizer.json``.
        dest: An existing, empty folder; gets model.safetensors (fp32), config.json,
            generation_config.json, preprocessor_config.json and the tokenizer.

    Raises:
        InputError: as for :func:`read` and :func:`state_dict`, or if the weights do not fill
            transformers' model exactly, or the files beside them cannot be used.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    source, dest = Path(source), Path(dest)
    binary = read(model)
    weights = state_dict(binary)
    tokenizer, ids = _tokenizer(source / "tokenizer.json")
    generation = _generation(source / "config.json", ids)
    shared = {k: generation[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
    vocabulary = len(weights.get("model.decoder.embed_tokens.weight", ()))
    if (highest := max(*ids.values(), *generation["suppress_tokens"], *generation["begin_suppress_tokens"])) >= vocabulary:
        raise InputError(f"{model} has no row for a token beside it.", got=f"token {highest}", expected=f"tokens below {vocabulary}")
    try:
        names = {"architectures": ["WhisperForConditionalGeneration"], "dtype": "float32"}
        settings: dict[str, Any] = _dimensions(binary, weights) | shared | names
        config = WhisperConfig(**settings)
        with torch.device("meta"):
            expected = {k: tuple(v.shape) for k, v in WhisperForConditionalGeneration(config).state_dict().items()}
        del expected["proj_out.weight"]  # tied to the embedding
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise InputError(f"{model} does not describe a Whisper model.", got=f"{type(e).__name__}: {e}") from None
    if wrong := sorted(k for k in expected.keys() | weights.keys() if k not in weights or expected.get(k) != weights[k].shape):
        got = ", ".join(f"{k} {weights[k].shape if k in weights else 'missing'}" for k in wrong[:3])
        want = str(expected.get(wrong[0], "no such weight"))
        raise InputError(f"{len(wrong)} weights of {model} do not fit transformers' Whisper.", got=got, expected=want)

    try:
        save_file(weights, dest / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as e:  # also how a full disk shows
        raise InputError("The converted weights cannot be written.", got=f"{dest}: {e}", do="make room on the disk") from None
    config.save_pretrained(dest)
    GenerationConfig(**generation).save_pretrained(dest)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(dest)
    tokenizer.save_pretrained(dest)


def _dimensions(binary: Binary, weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Sizes of the model as its tensors have them; heads are the one thing that no shape tells."""
    vocabulary, width = weights["model.decoder.embed_tokens.weight"].shape
    dims = {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": weights["model.encoder.conv1.weight"].shape[1],
        "max_source_positions": len(weights["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(weights["model.decoder.embed_positions.weight"]),
    }
    for side in ("encoder", "decoder"):
        dims[f"{side}_layers"] = len({k.split(".")[3] for k in weights if k.startswith(f"model.{side}.layers.")})
        dims[f"{side}_ffn_dim"] = len(weights[f"model.{side}.layers.0.fc1.weight"])
        dims[f"{side}_attention_heads"] = heads = int(binary.variables[f"{side}/num_heads"])
        if heads < 1 or width % heads:
            raise ValueError(f"{side}/num_heads {heads} does not divide the width {width}")
    return dims


def _tokenizer(path: Path) -> tuple[Any, dict[str, int]]:
    """The tokenizer as transformers' own class, and the ids of its special tokens."""
    from transformers import WhisperTokenizer

    try:
        added = sorted(json.loads(path.read_text("utf-8"))["added_tokens"], key=lambda token: int(token["id"]))
        ids = {str(token["content"]): int(token["id"]) for token in added if token["special"]}
        if missing := [name for name in NEEDED if name not in ids]:
            raise ValueError(f"no token {', '.join(missing)}")
        settings: dict[str, Any] = {"pad_token": "<|endoftext|>", "model_max_length": 1024}
        tokenizer = WhisperTokenizer(tokenizer_file=str(path), extra_special_tokens=list(ids), **settings)
    except Exception as e:  # the tokenizers library raises bare Exception
        got = f"{path}: {e}"
        raise InputError("The tokenizer beside the weights cannot be used.", got=got, expected="a Whisper tokenizer.json") from None
    return tokenizer, ids


def _generation(path: Path, ids: Mapping[str, int]) -> dict[str, Any]:
    """Whisper's generation settings: all ids from the tokenizer, since converters got some of them wrong.

    (The ``lang_ids`` of published ``.en`` files are off by one.) An English-only tokenizer is known by
    its ``<|endoftext|>``: GPT-2's 50256, one below the multilingual one's.
    """
    try:
        extra = json.loads(path.read_text("utf-8"))
        suppress, begin = ([int(i) for i in extra[k]] for k in ("suppress_ids", "suppress_ids_begin"))
        heads = [[int(layer), int(head)] for layer, head in extra.get("alignment_heads", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        want = "suppress_ids and suppress_ids_begin, lists of token ids"
        raise InputError("The config.json beside the weights cannot be used.", got=f"{path}: {e!r}", expected=want) from None
    multilingual = ids["<|endoftext|>"] == 50257
    settings: dict[str, Any] = {
        "bos_token_id": ids["<|startoftranscript|>"],
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "suppress_tokens": suppress,
        "begin_suppress_tokens": begin,
        "alignment_heads": heads,
        "is_multilingual": multilingual,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
    }
    if multilingual:
        settings["lang_to_id"] = {name: i for name, i in ids.items() if re.fullmatch(r"<\|[a-z]{2,3}\|>", name)}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    return settings
