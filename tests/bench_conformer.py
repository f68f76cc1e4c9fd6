"""How fast a Conformer-CTC of size S trains from scratch, beside SpeechBrain's.

    python tests/bench_conformer.py [--steps 8] [--data prompts joined]

Each side trains in a process of its own, a step of one and then a step of the next. Prints clips and seconds of audio a second
over an epoch's steps but the first, and the padding in their batches. In full about half an hour on two cores. SpeechBrain is
no dependency: ``uv pip install speechbrain`` puts it beside the lab, best into an environment that is thrown away; where it
is missing its rows are left out.

Equal on both sides: clips and how they are read, bf16 autocast, threads, audio a step, AdamW, clipping at 1.0, dropout, 16 layers of
width 144 with 4 heads, feed-forward 576, kernel 31, frames of 40 ms, characters, CTC; no loader processes, no augmentation.
SpeechBrain's side is its ``Brain.fit`` with its ``DynamicBatchSampler`` (the number of buckets that pads least, of three), its
``Fbank``, normalisation and ``ConvolutionFrontEnd``, and its Conformer with each of three kinds of attention: ``regularMHA`` is what
ours has, ``RelPosMHAXL`` what its LibriSpeech recipe has, ``RoPEMHA`` calls torch's fused attention.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from bench_train import joined
from lhotse import CutSet
from turns import Turn, in_turns

from speechlab import config, corpora, pool, training
from speechlab.batches import Clips
from speechlab.models import ctc
from speechlab.models.conformer import SIZES
from speechlab.runs import Run

GOAL = 1.5
ATTENTIONS = ("regularMHA", "RelPosMHAXL", "RoPEMHA")
BUCKETS = (5, 20, 60)
DROPOUT = 0.1


@dataclass(frozen=True)
class Steps:
    """Of each step: clips, seconds of audio, the same with padding, seconds on the clock; and processor seconds of all."""

    clips: list[int]
    audio: list[float]
    padded: list[float]
    seconds: list[float]
    processor: float
    parameters: int

    def row(self, data: str, who: str) -> dict[str, Any]:
        seconds = sum(self.seconds[1:])  # the first chooses kernels
        audio = sum(self.audio[1:])
        return {
            "data": data,
            "who": who,
            "parameters": f"{self.parameters / 1e6:.1f} M",
            "steps": len(self.clips),
            "clips/s": sum(self.clips[1:]) / seconds,
            "audio s/s": audio / seconds,
            "processor s / audio s": self.processor / sum(self.audio),
            "padding": f"{1 - audio / sum(self.padded[1:]):.1%}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=None, help="none is an epoch")
    parser.add_argument("--batch-seconds", type=float, default=120.0)
    parser.add_argument("--data", nargs="+", choices=("prompts", "joined"), default=["prompts", "joined"])
    parser.add_argument("--joined", type=int, default=192, help="clips of LibriSpeech's lengths")
    parser.add_argument("--threads", type=int, default=pool.cores())
    asked = parser.parse_args()
    values = {
        "name": "bench",
        "question": "How fast?",
        "model": {"family": "conformer", "weights": None, "shape": {"size": "S", "dropout": DROPOUT}},
        "training": {"epochs": 1, "batch_seconds": asked.batch_seconds, "micro_batches": 1, "precision": "bf16"},
    }
    made = config.validate(values, "bench")
    prompts = corpora.prepare("prompts")
    few = CutSet.from_cuts(sorted(prompts.cuts["dev"], key=lambda c: c.duration)[:2])  # what is decoded at the end is not timed
    if find_spec("speechbrain") is None:
        print("SpeechBrain is not installed: its rows are left out (uv pip install speechbrain)")
    with tempfile.TemporaryDirectory() as top:
        for data in asked.data:
            corpus = (
                joined(prompts, asked.joined, Path(top))
                if data == "joined"
                else dataclasses.replace(prompts, cuts={**prompts.cuts, "dev": few})
            )
            kinds = (None, *(ATTENTIONS if find_spec("speechbrain") else ()))
            given = (made, corpus, top, asked.threads, asked.steps)
            sides = {f"SpeechBrain, {kind}" if kind else "the lab": [(side, kind, *given)] for kind in kinds}
            table = pd.DataFrame([steps.row(data, who) for who, (steps,) in in_turns(sides).items()])
            print(table.to_string(index=False, float_format="{:.3f}".format), flush=True)
            ours, *theirs = table["audio s/s"]
            if theirs:
                print(f"{data}: {ours / max(theirs):.2f} times SpeechBrain's fastest, {ours / theirs[0]:.2f} times its equal, "
                      f"{ours / theirs[1]:.2f} times its recipe's; goal at least {GOAL}", flush=True)  # fmt: skip


def side(
    turn: Turn, attention: str | None, made: config.Experiment, corpus: corpora.Corpus, top: str, threads: int, steps: int | None
) -> Steps:
    torch.set_num_threads(threads)
    return speechbrain(turn, attention, made, corpus, steps) if attention else lab(turn, made, corpus, top, steps)


def lab(turn: Turn, made: config.Experiment, corpus: corpora.Corpus, top: str, steps: int | None) -> Steps:
    start = training.begin(made, Clips.of(corpus))
    found, processor, parameters = [], 0.0, 0
    events = training.train(made, corpus, str(start.path), Run.create(made, Path(top)))
    before = time.process_time()
    for event in events:
        if event["kind"] == "start":
            parameters = event["parameters"]
        if event["kind"] == "step":
            found.append(event)
            processor += time.process_time() - before
        if len(found) == steps:
            break
        if event["kind"] in ("start", "step"):
            turn()
        before = time.process_time()
    columns = ([e[name] for e in found] for name in ("clips", "audio_seconds", "padded_seconds", "step_seconds"))
    return Steps(*columns, processor, parameters)


def speechbrain(turn: Turn, attention: str, made: config.Experiment, corpus: corpora.Corpus, steps: int | None) -> Steps:
    import speechbrain as sb
    from speechbrain.dataio.sampler import DynamicBatchSampler
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
    from speechbrain.nnet.linear import Linear
    from speechbrain.nnet.losses import ctc_loss
    from speechbrain.processing.features import InputNormalization

    logging.disable(logging.WARNING)
    torch.manual_seed(made.seed)
    clips, size = Clips.of(corpus), SIZES["S"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = ctc.make_vocabulary(made.model.vocabulary, clips.texts, Path(folder))
    rows = {
        cut.id: {"duration": cut.duration, "cut": cut, "labels": vocabulary.encode([cut.supervisions[0].text])[0]} for cut in clips.cuts
    }

    @sb.utils.data_pipeline.takes("cut")
    @sb.utils.data_pipeline.provides("sig")
    def sound(cut: Any) -> torch.Tensor:
        return torch.from_numpy(corpora.load_audio(cut))

    @sb.utils.data_pipeline.takes("labels")
    @sb.utils.data_pipeline.provides("tokens")
    def tokens(labels: list[int]) -> torch.Tensor:
        return torch.tensor(labels)

    dataset = sb.dataio.dataset.DynamicItemDataset(rows, [sound, tokens], ["id", "sig", "tokens"])

    def sampler(buckets: int) -> Any:
        return DynamicBatchSampler(dataset, made.training.batch_seconds, buckets, seed=made.seed)  # type: ignore[arg-type]

    def padded(sampler: Any) -> float:
        return sum(len(batch) * max(clips.cuts[i].duration for i in batch) for batch in sampler)

    chosen = min(map(sampler, BUCKETS), key=padded)
    loader = sb.dataio.dataloader.SaveableDataLoader(dataset, batch_sampler=chosen, collate_fn=sb.dataio.batch.PaddedBatch)

    class Asr(sb.Brain):  # type: ignore[misc]
        def compute_forward(self, batch: Any, stage: Any) -> Any:
            sound, lengths = batch.sig
            feats = self.modules.normalize(self.hparams.features(sound), lengths, epoch=0)
            hidden = self.modules.transformer.encode(self.modules.front(feats), lengths)
            return self.modules.head(hidden).log_softmax(-1)

        def compute_objectives(self, predictions: Any, batch: Any, stage: Any) -> torch.Tensor:
            labels, label_lengths = batch.tokens
            return ctc_loss(predictions.float(), labels, batch.sig.lengths, label_lengths, vocabulary.blank)

        def on_stage_start(self, stage: Any, epoch: Any = None) -> None:
            self.seen: list[tuple[int, float, float, float]] = []
            turn()
            self.began_processor, self.mark = time.process_time(), time.perf_counter()

        def on_fit_batch_end(self, batch: Any, outputs: Any, loss: torch.Tensor, should_step: bool) -> None:
            now, (sound, lengths) = time.perf_counter(), batch.sig
            most = sound.shape[1] / 16_000
            self.seen.append((len(lengths), float(lengths.sum()) * most, len(lengths) * most, now - self.mark))
            turn()
            self.mark = time.perf_counter()

        def on_stage_end(self, stage: Any, loss: float, epoch: Any = None) -> None:
            self.processor = time.process_time() - self.began_processor

    front: dict[str, Any] = {"num_blocks": 2, "num_layers_per_block": 1, "out_channels": (64, 32), "kernel_sizes": (3, 3),
                             "strides": (2, 2), "residuals": (False, False)}  # fmt: skip
    modules = {
        "normalize": InputNormalization(norm_type="global", update_until_epoch=4),
        "front": ConvolutionFrontEnd((8, 10, 80), **front),  # as its LibriSpeech recipe has it, 640 features of a frame
        "transformer": TransformerASR(
            len(vocabulary),
            input_size=640,
            d_model=size.dim,
            nhead=size.heads,
            num_encoder_layers=size.layers,
            num_decoder_layers=0,
            d_ffn=size.ffn,
            dropout=DROPOUT,
            activation=torch.nn.GELU,
            normalize_before=True,
            kernel_size=size.kernel,
            encoder_module="conformer",
            attention_type=attention,
            causal=False,
        ),
        "head": Linear(input_size=size.dim, n_neurons=len(vocabulary)),
    }
    options: dict[str, Any] = {"device": "cpu", "precision": "bf16", "max_grad_norm": made.optim.clip, "noprogressbar": True}
    if steps:
        options |= {"debug": True, "debug_batches": steps, "debug_epochs": 1}
    brain = Asr(
        modules,
        lambda parameters: torch.optim.AdamW(parameters, lr=made.optim.lr, fused=True),
        {"features": Fbank(sample_rate=16_000, n_mels=80, n_fft=512)},
        options,
    )
    brain.fit(range(1), loader)
    number = sum(p.numel() for m in brain.modules.values() for p in m.parameters() if p.requires_grad)
    columns = (list(column) for column in zip(*brain.seen, strict=True))
    return Steps(*columns, brain.processor, number)


if __name__ == "__main__":
    main()
