"""Whether runs come out again: each family to the bit, one run ten times in a row, and what another number of threads does.

    python tests/bench_reproduce.py [--times 10] [--only whisper|conformer|wav2vec2]

Small trainings on real speech, one process each: Whisper tiny.en fine-tuned in bf16, a Conformer and a Wav2Vec2 from scratch in fp32.
Each is trained, made again by ``speechlab reproduce`` as often as is asked, the first family ten times, and trained twice more with
another number of threads and another seed, which the verdict has to tell.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from speechlab import verdict
from speechlab.runs import Run

SMALL = ["corpus.limit=8", "training.epochs=2", "training.validate_epochs=1", "cluster.workers=0", "tracking.enabled=false"]
CONFIGS = {"whisper": ("smoke", []), "conformer": ("conformer", ["model.shape.layers=2"]), "wav2vec2": ("wav2vec2", [])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--only", choices=CONFIGS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for family in [asked.only] if asked.only else CONFIGS:
            original = train(family, Path(folder) / family, 2)
            began, found = time.perf_counter(), Counter()
            for _ in range(asked.times if family in (asked.only, "whisper") else 1):
                done = command("reproduce", "--run-id", str(original.path))
                found[done.stdout.splitlines()[-2].split(":")[0]] += 1
            took = (time.perf_counter() - began) / found.total()
            print(f"{family}: {original.events()[-1].get('step')} steps; {dict(found)}, {took:.0f} s each", flush=True)
            for what, other in (
                ("one thread", train(family, Path(folder) / f"{family}-threads", 1)),
                ("another seed", train(family, Path(folder) / f"{family}-seed", 2, "seed=7")),
            ):
                print(f"  {what}: {verdict.compare(original, other).text}", flush=True)


def train(family: str, folder: Path, threads: int, *more: str) -> Run:
    name, shape = CONFIGS[family]
    settings = [word for item in (*SMALL, *shape, *more, f"cluster.storage={folder}") for word in ("--set", item)]
    command("train", "--config", f"configs/{name}.yaml", *settings, threads=threads)
    (made,) = folder.glob("*/config.yaml")
    return Run(made.parent)


def command(*words: str, threads: int = 2) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, "-m", "speechlab", *words], capture_output=True, text=True, env=env)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"speechlab {' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done


if __name__ == "__main__":
    main()
