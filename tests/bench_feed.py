"""How long training waits for its input, with every augmentation on.

    python tests/bench_feed.py [--steps 12]

Trains Whisper tiny.en on the prompts in this process with 0, 1 and 2 loader processes, and prints the share of the step
time that was spent waiting for a batch. The first step is left out: loader processes take seconds to start, and rooms
are made once. Two cores are shared by the loaders and the arithmetic here; a GPU leaves its cores to the loaders.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from speechlab import config, corpora, training
from speechlab.models import weights
from speechlab.runs import Run

AUGMENT = {"speed": {}, "room": {}, "noise": {}, "gain": {}, "clipping": {}, "codec": {}, "spec": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    base = config.load("configs/quickstart.yaml")
    corpus = corpora.configured(base.corpus)
    start = weights.resolve("whisper", "tiny.en")
    rows = []
    for augmented in (False, True):
        for workers in (0, 1, 2):
            values = base.model_dump() | {"augment": AUGMENT if augmented else {}}
            values["cluster"]["loader_workers"] = workers
            made = config.validate(values, "bench")
            with tempfile.TemporaryDirectory() as folder:
                run = Run.create(made, Path(folder))
                seen = []
                for event in training.train(made, corpus, str(start.path), run):
                    if event["kind"] == "step":
                        seen.append(event)
                    if len(seen) > steps:
                        break
            table = pd.DataFrame(seen[1:])
            wait, step = table.wait_seconds.sum(), table.step_seconds.sum()
            rows.append({"augmented": augmented, "loaders": workers, "s/step": step / len(table), "wait": f"{wait / step:.2%}",
                         "audio s/s": table.audio_seconds.sum() / step})  # fmt: skip
            print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1), flush=True)


if __name__ == "__main__":
    main()
