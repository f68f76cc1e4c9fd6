"""How much faster Whisper is fine-tuned in the context that clips need than by the published recipe at 30 s.

    python tests/bench_train.py [--epochs 3] [--clips 32] [--short] [--recipe-steps 12] [--data prompts joined]

Trains Whisper tiny.en twice on the same clips, in two processes, a step of one and then a step of the other: by the lab's loop
with the quickstart's settings but for the size of a step, 32 clips (``joined``: 12), and by transformers' ``Seq2SeqTrainer`` as
Hugging Face's Whisper recipe has it. ``prompts`` are the telephone prompts (most under 3 s) for the quickstart's epochs;
``joined`` are made of them, to the lengths of LibriSpeech's utterances, for one epoch. Prints clips a second over the steps
alone, with and without the lab's few steps at 30 s, and the word error rates of the last checkpoints by the lab's decoder. In
full about 20 minutes on two cores; ``--recipe-steps`` takes only so many steps of each, and leaves the error rates out.

Equal on both sides: clips, initial weights, bf16 autocast, fp32 weights, threads, learning rates, AdamW, clipping at 1.0,
the passes of a step, and clips a step.
In the recipe's favour: its spectrograms are made beforehand, as its ``dataset.map`` does, and that time is given apart,
while the lab reads, checks and transforms the sound within the step; gradient checkpointing, which the recipe has on
and which costs time, is off. Left as the recipe has it: transcripts without a leading space, the mean of each pass's losses.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
import torch
from lhotse import CutSet
from turns import Turn, in_turns

from speechlab import audio, checkpoints, comparison, config, corpora, decoding, models, pool, scoring, training
from speechlab.batches import Clips
from speechlab.corpora import base
from speechlab.models import weights
from speechlab.runs import Run
from speechlab.text import normaliser

RATE = 16_000
GOALS = {"prompts": 10, "joined": 2}


@dataclass(frozen=True)
class Timed:
    """One training: clips and seconds of each step, processor seconds of them all, and the weights at its end."""

    clips: list[int]
    seconds: list[float]
    processor: float
    beforehand: float
    folder: str
    full: list[bool]

    @property
    def rate(self) -> float:
        return sum(self.clips) / sum(self.seconds)

    @property
    def short_rate(self) -> float:
        """Without the steps at 30 s."""
        kept = [(n, s) for n, s, full in zip(self.clips, self.seconds, self.full, strict=True) if not full]
        return sum(n for n, _ in kept) / sum(s for _, s in kept)

    def row(self, data: str, who: str) -> dict[str, Any]:
        each = np.array(self.clips) / np.array(self.seconds)
        return {"data": data, "who": who, "steps": len(each), "clips": sum(self.clips), "step s": sum(self.seconds),
                "clips/s": self.rate, "never 30 s": self.short_rate, "median of steps": float(np.median(each)),
                "processor s/clip": self.processor / sum(self.clips), "beforehand s": self.beforehand}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="over the prompts")
    parser.add_argument("--clips", type=int, default=32, help="of a step of the prompts")
    parser.add_argument("--short", action="store_true", help="no steps at 30 s")
    parser.add_argument("--recipe-steps", type=int, default=None)
    parser.add_argument("--data", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--joined", type=int, default=256, help="clips of LibriSpeech's lengths")
    parser.add_argument("--threads", type=int, default=pool.cores())
    asked = parser.parse_args()
    quickstart = config.load("configs/quickstart.yaml")
    prompts = corpora.configured(quickstart.corpus)
    start = str(weights.resolve("whisper", "tiny.en").path)
    heard = []
    with tempfile.TemporaryDirectory() as top:
        for data in asked.data:
            epochs = asked.epochs if data == "prompts" else 1
            values = quickstart.model_dump()
            values["training"] |= {
                "epochs": epochs,
                "validate_epochs": epochs,
                "batch_seconds": None,
                "batch_clips": asked.clips,
                "micro_batches": max(2, asked.clips // 32),
            }
            corpus = prompts
            if data == "joined":
                corpus = joined(prompts, asked.joined, Path(top))
                values["training"] |= {"batch_clips": 12, "micro_batches": 2}
            if asked.short:
                values["context"] |= {"full_fraction": 0.0}
            made = config.validate(values, "bench")
            given = (made, corpus, start, top, asked.threads, asked.recipe_steps)
            timed = {who: found[0] for who, found in in_turns({"the lab": [(lab, *given)], "the recipe": [(recipe, *given)]}).items()}
            print(pd.DataFrame([t.row(data, who) for who, t in timed.items()]).to_string(index=False, float_format="{:.2f}".format))
            ours, theirs = timed.values()
            print(f"{data}: the lab trains {ours.rate / theirs.rate:.1f} times as many clips a second, "
                  f"{ours.short_rate / theirs.rate:.1f} times without steps at 30 s; goal at least {GOALS[data]}", flush=True)  # fmt: skip
            if data == "prompts" and asked.recipe_steps is None:
                heard = [(who, t.folder) for who, t in timed.items()]
        if heard:
            word_errors([("untrained", start), *heard], prompts)


# --- the two sides -----------------------------------------------------------------------------------------------


def lab(turn: Turn, made: config.Experiment, corpus: corpora.Corpus, start: str, top: str, threads: int, steps: int | None) -> Timed:
    torch.set_num_threads(threads)
    run = Run.create(made, Path(top))
    found, processor = [], 0.0
    before = time.process_time()
    for event in training.train(made, corpus, start, run):
        if event["kind"] == "step":
            found.append(event)
            processor += time.process_time() - before
            if len(found) == steps:
                break
        if event["kind"] in ("start", "step"):
            turn()
        before = time.process_time()  # what lies between two steps, such as validation, is not counted
    clips, seconds, full = ([e[name] for e in found] for name in ("clips", "step_seconds", "full_context"))
    folder = "" if steps else str(checkpoints.existing(run.path / "checkpoints")[-1].path)
    return Timed(clips, seconds, processor, 0.0, folder, full)


def recipe(turn: Turn, made: config.Experiment, corpus: corpora.Corpus, start: str, top: str, threads: int, steps: int | None) -> Timed:
    from transformers import (
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    torch.set_num_threads(threads)
    t, o, train = made.training, made.optim, Clips.of(corpus)
    a_step = len(train.cuts) / training.plan_for(made, train).steps_in(0)
    a_pass = round(a_step / t.micro_batches)

    began = time.perf_counter()
    extract = WhisperFeatureExtractor.from_pretrained(start)
    tokenizer = WhisperTokenizerFast.from_pretrained(start)
    examples = [
        {
            "input_features": extract(corpora.load_audio(cut), sampling_rate=RATE).input_features[0],
            "labels": tokenizer(cut.supervisions[0].text).input_ids,
        }
        for cut in train.cuts
    ]
    beforehand = time.perf_counter() - began
    model = WhisperForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    model.config.use_cache = False

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = tokenizer.pad([{"input_ids": row["labels"]} for row in rows], return_tensors="pt")
        labels_BL = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        if (labels_BL[:, 0] == model.config.decoder_start_token_id).all():  # the model puts it there again
            labels_BL = labels_BL[:, 1:]
        return {"input_features": torch.from_numpy(np.stack([row["input_features"] for row in rows])), "labels": labels_BL}

    class Clock(TrainerCallback):  # type: ignore[misc]
        """From one step's end to the next's: fetching, both passes, the update, logging."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.mark = 0.0

        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            turn()
            self.mark = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.mark)
            turn()
            self.mark = time.perf_counter()

    clock = Clock()
    arguments = Seq2SeqTrainingArguments(
        output_dir=f"{top}/recipe",
        use_cpu=True,
        bf16=t.precision == "bf16",
        per_device_train_batch_size=a_pass,
        gradient_accumulation_steps=t.micro_batches,
        num_train_epochs=t.epochs,
        max_steps=steps or -1,
        learning_rate=o.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": o.lr_min},
        warmup_steps=o.warmup_steps,
        weight_decay=o.weight_decay,
        max_grad_norm=o.clip,
        optim="adamw_torch_fused",
        seed=made.seed,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=25,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Seq2SeqTrainer(model, arguments, data_collator=collate, train_dataset=examples, callbacks=[clock])  # type: ignore[arg-type]
    before = time.process_time()
    trainer.train()
    processor = time.process_time() - before
    whole, rest = divmod(len(examples), a_pass * t.micro_batches)
    clips = ([a_pass * t.micro_batches] * whole + [rest] * (rest > 0)) * t.epochs
    folder = ""
    if steps is None:
        folder = f"{top}/recipe-{corpus.name}"
        trainer.save_model(folder)
        for part in (tokenizer, extract):
            part.save_pretrained(folder)
    taken = len(clock.seconds)
    return Timed(clips[:taken], clock.seconds, processor, beforehand, folder, [False] * taken)


# --- clips of LibriSpeech's lengths --------------------------------------------------------------------------------


def lengths(rng: np.random.Generator, count: int) -> Any:
    """Seconds like those of train-clean's utterances: 2 to 17, most above 12, mean 12.3."""
    return np.clip(np.where(rng.random(count) < 0.75, rng.normal(14.2, 1.2, count), rng.uniform(2, 13, count)), 2, 17)


def joined(corpus: corpora.Corpus, count: int, folder: Path, seed: int = 1) -> corpora.Corpus:
    """Training clips of one speaker, joined to the lengths of LibriSpeech's utterances."""
    rng = np.random.default_rng(seed)
    wanted = lengths(rng, count)
    parts = [cut for cut in corpus.cuts["train"] if cut.duration < 12]
    waves = {cut.id: corpora.load_audio(cut) for cut in parts}
    cuts = []
    for i, seconds in enumerate(wanted):
        taken: list[Any] = []
        left = seconds
        while fitting := [cut for cut in parts if cut.duration <= left]:
            taken.append(fitting[rng.integers(len(fitting))])
            left -= taken[-1].duration
        wave_N = np.concatenate([waves[cut.id] for cut in taken])
        path = folder / f"joined-{i:04d}.flac"
        soundfile.write(path, wave_N, RATE, subtype="PCM_16")
        wave_N = audio.decode(path)
        cuts.append(base.clip(f"joined-{i:04d}", str(path), len(wave_N), " ".join(cut.supervisions[0].text for cut in taken),
                              taken[0].supervisions[0].speaker, "en", "train", base.PCM + audio.pcm_sha256(wave_N)))  # fmt: skip
    found = np.array([cut.duration for cut in cuts])
    print(
        f"joined: {count} clips of {found.min():.1f} to {found.max():.1f} s, mean {found.mean():.1f}, median {np.median(found):.1f}",
        flush=True,
    )
    few = CutSet.from_cuts(sorted(corpus.cuts["dev"], key=lambda c: c.duration)[:2])
    return dataclasses.replace(corpus, name="joined", cuts={"train": CutSet.from_cuts(cuts), "dev": few, "test": few})


# --- what came of it -----------------------------------------------------------------------------------------------


def word_errors(systems: list[tuple[str, str]], corpus: corpora.Corpus) -> None:
    """Of the test clips, decoded alike at 30 s; in short context too what has learnt it."""
    cuts, found, rows = corpus.cuts["test"], {}, []
    for who, folder in systems:
        model = models.load("whisper", folder, "en")
        for context in ("full", "short") if who.startswith("the lab") else ("full",):
            answers = sorted((a for batch in decoding.decode(model, list(cuts), context=context) for a in batch), key=lambda a: a.id)
            columns = [a.reference for a in answers], [a.hypothesis for a in answers]
            scores = found[who, context] = scoring.score(*columns, normaliser("english"), [a.speaker for a in answers])
            interval = scores.interval()
            rows.append({"who": who, "context": context, "WER": f"{scores.wer:.2%}", "95 %": f"{interval.low:.2%} to {interval.high:.2%}",
                         "errors": f"{scores.substitutions} S, {scores.deletions} D, {scores.insertions} I"})  # fmt: skip
    print(f"{len(cuts)} test clips, {scores.words} words, {scores.normaliser}; intervals over utterances: these speakers")
    print(pd.DataFrame(rows).to_string(index=False))
    if ("the recipe", "full") in found:
        for (who, context), scores in found.items():
            if who.startswith("the lab"):
                print(f"{who} ({context}) minus the recipe (full): {comparison.compare(found['the recipe', 'full'], scores)}")


if __name__ == "__main__":
    main()
