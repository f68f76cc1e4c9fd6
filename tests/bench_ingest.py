"""Hours of speech that are ingested in a minute of one core, and whether memory grows with the corpus.

    python tests/bench_ingest.py [--hours 20] [--folder /somewhere/with/room]

Makes corpora of a quarter and of the whole number of hours by repeating the real prompts at other speeds and levels, so
that no two clips are equal; ingests each through Ray Data into shards (decode, VAD, measures, hash, FLAC); and prints
hours a core-minute, the peak memory of all processes together (proportional, shared pages once) and the driver's own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from speechlab import audio, corpora, effects, ingest, pool
from speechlab.config import corpus_section

RATE = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as top:
        for hours in (asked.hours / 4, asked.hours):
            measure(Path(top), hours)


def measure(top: Path, hours: float) -> None:
    root, out = top / "corpus", top / "shards"
    seconds, clips = make(root, hours)
    settings = corpus_section(name="own", root=str(root))
    entries, _, _ = corpora.entries(settings)
    meter = Meter()
    began = time.monotonic()
    meter.start()
    total = ingest.ingest(settings, entries, out)
    meter.over.set()
    meter.join()
    wall = time.monotonic() - began
    size = sum(p.stat().st_size for p in out.rglob("*.tar")) / 1e9
    print(f"{seconds / 3600:.2f} h, {clips} clips: {wall:.0f} s on {pool.cores()} cores, "
          f"{seconds / 3600 / (wall / 60 * pool.cores()):.2f} h a core-minute of wall time; shards {size:.2f} GB; "
          f"peak memory {meter.peak / 1e9:.2f} GB in all, driver {meter.driver / 1e9:.2f} GB; {total['verdict']}", flush=True)  # fmt: skip
    shutil.rmtree(root)
    shutil.rmtree(out)


def make(root: Path, hours: float) -> tuple[float, int]:
    """A folder of FLAC files with a NeMo manifest; repeated until it is long enough."""
    root.mkdir(parents=True)
    prompts = corpora.prepare("prompts")
    cuts = [c for split in prompts.cuts.values() for c in split]
    rows, seconds = [], 0.0
    copies = int(np.ceil(hours * 3600 / sum(c.duration for c in cuts)))
    jobs = [(copy, cut) for copy in range(copies) for cut in cuts]
    for _, row in pool.over(partial(one, root=root), jobs):
        assert not isinstance(row, pool.Crashed)
        if seconds < hours * 3600:
            rows.append(row)
            seconds += row["duration"]
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return seconds, len(rows)


def one(job: tuple, root: Path) -> dict:
    copy, cut = job
    rng = np.random.default_rng(audio.clip_seed(copy, cut.id))
    wave = effects.speed(corpora.load_audio(cut), float(rng.uniform(0.9, 1.1))) * float(rng.uniform(0.3, 1.0))
    name = f"{copy:03d}/{cut.id}.flac"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    audio.save_flac(root / name, wave)
    return {"audio_filepath": name, "text": cut.supervisions[0].text, "duration": len(wave) / RATE, "id": f"{copy:03d}/{cut.id}"}


class Meter(threading.Thread):
    """Peak memory of this process and of all below it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.peak, self.driver = threading.Event(), 0.0, 0.0

    def run(self) -> None:
        me = psutil.Process()
        while not self.over.wait(1.0):
            sizes = {p.pid: proportional(p.pid) for p in [me, *me.children(recursive=True)]}
            self.peak, self.driver = max(self.peak, sum(sizes.values())), max(self.driver, sizes.get(os.getpid(), 0))


def proportional(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    except (OSError, StopIteration):
        return 0.0


if __name__ == "__main__":
    main()
