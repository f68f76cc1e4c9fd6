"""What twenty who ask at once get of the playground's worker, against one after another; and whether the pages stay alive.

    python tests/bench_serving.py [--asked 20] [--rounds 5]

The worker is one process, as every server has it, with tiny.en; the clips are test clips of ``prompts``. In each round the crowd asks at
once, then once more while a recording of minutes is heard, then each clip is asked for when the one before has been answered.
Meanwhile another process asks the server, which holds the worker, for an empty page, again and again. Latency is from the request
to its last word, decoding of the upload not included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import panel as pn
from browser import free_port

from speechlab import corpora
from speechlab.units import SAMPLE_RATE
from speechlab.worker import Worker

ASK = """import sys, time, urllib.request
while True:
    began = time.perf_counter()
    urllib.request.urlopen(sys.argv[1], timeout=60).read()
    print(time.perf_counter() - began, flush=True)
    time.sleep(0.1)
"""


def spread(seconds: list[float]) -> str:
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return f"p50 {p50:.3f} s, p95 {p95:.3f} s, most {max(seconds):.3f} s of {len(seconds)}"


async def timed(worker: Worker, wave_N: np.ndarray) -> tuple[float, str]:
    began = time.perf_counter()
    found = [passage.text async for passage in worker.ask("tiny.en", "en", wave_N)]
    return time.perf_counter() - began, " ".join(found)


def asking(port: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ASK, f"http://127.0.0.1:{port}/"], stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> list[float]:
    process.terminate()
    return [float(line) for line in process.communicate()[0].splitlines()]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--asked", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    wanted = parser.parse_args()
    cuts = sorted(corpora.prepare("prompts", language="en").cuts["test"], key=lambda cut: (cut.duration, cut.id))
    waves = [corpora.load_audio(cut) for cut in cuts[:: max(1, len(cuts) // wanted.asked)][: wanted.asked]]
    long_N = np.concatenate([part for _ in range(4) for wave in waves for part in (wave, np.zeros(SAMPLE_RATE, np.float32))])
    seconds = sum(map(len, waves)) / SAMPLE_RATE
    print(
        f"{len(waves)} clips, {seconds:.0f} s; beside them a recording of {len(long_N) / SAMPLE_RATE / 60:.1f} min; {os.cpu_count()} cores"
    )
    port, worker = free_port(), Worker()
    server = pn.serve(lambda: pn.pane.HTML(""), address="127.0.0.1", port=port, show=False, threaded=True, verbose=False)
    try:
        print(f"first answer after {(await timed(worker, waves[0]))[0]:.1f} s, with the start of the process and the model")
        once = [(await timed(worker, wave))[1] for wave in waves]  # shapes that have not been seen cost time of their own
        await asyncio.gather(*(timed(worker, wave) for wave in waves))
        calm = asking(port)
        await asyncio.sleep(10)
        idle = said(calm)
        pages, crowd, beside, alone, ratios, wrong = [], [], [], [], [], 0
        for _ in range(wanted.rounds):
            busy = asking(port)
            began = time.perf_counter()
            found = await asyncio.gather(*(timed(worker, wave) for wave in waves))
            together = time.perf_counter() - began
            recording = asyncio.ensure_future(timed(worker, long_N))
            await asyncio.sleep(0.5)
            mixed = await asyncio.gather(*(timed(worker, wave) for wave in waves))
            took, _ = await recording
            pages += said(busy)
            wrong += sum(a != b for got in (found, mixed) for (_, a), b in zip(got, once, strict=True))
            crowd += [s for s, _ in found]
            beside += [s for s, _ in mixed]
            began = time.perf_counter()
            one = [(await timed(worker, wave))[0] for wave in waves]
            apart = time.perf_counter() - began
            alone += one
            ratios.append(apart / together)
            print(f"at once {together:.2f} s ({seconds / together:.1f} x real time), one by one {apart:.2f} s, the recording {took:.1f} s")
        print(f"errors: 0; texts that differ from those heard alone: {wrong} of {2 * len(waves) * wanted.rounds}")
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"throughput at once against one after another: {statistics.median(ratios):.2f} times (of {each})")
        print(f"latency, at once: {spread(crowd)}")
        print(f"latency, at once beside the recording: {spread(beside)}")
        print(f"latency, one after another: {spread(alone)}")
        print(f"an empty page, meanwhile: {spread(pages)}; with nothing to hear: {spread(idle)}")
    finally:
        server.stop()
        worker.close()


if __name__ == "__main__":
    asyncio.run(main())
