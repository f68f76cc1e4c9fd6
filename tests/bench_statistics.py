"""Whether intervals cover what they claim, how often tests raise false alarms, and what a bootstrap costs.

    python tests/bench_statistics.py [--trials 1000]

Simulated truth: a speaker's word error rate is drawn around 10 %, a word's errors from that. Coverage is the share of 95 %
intervals that hold the true rate; the standard error of a share over 1,000 trials is 0.7 points. Two systems that are equal on
average but suit speakers differently are compared; a test should raise an alarm (p up to 0.05) in 5 % of trials. A
three minutes on one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from counts import made, simulated

from speechlab.comparison import compare
from speechlab.scoring import Scores
from speechlab.statistics import SCOPES, By, mapsswe, paired_t, ratio_interval

SETTINGS = [  # speakers, utterances of each, standard deviation of the speakers' rates
    (5, 20, 0.03),
    (10, 20, 0.03),
    (20, 20, 0.03),
    (40, 20, 0.03),
    (100, 20, 0.03),
    (100, 8, 0.05),
    (150, 1, 0.0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(pd.DataFrame([covered(trials, *s) for s in SETTINGS]).to_string(index=False, float_format="{:.1f}".format), flush=True)
    print(pd.DataFrame([alarms(trials // 2, k) for k in (8, 12, 30)]).to_string(index=False, float_format="{:.1f}".format), flush=True)
    words, errors, _ = simulated(np.random.default_rng(0), 2620, 1, 0.05)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        ratio_interval(errors, words, by="utterance", resamples=1000)
        seconds.append(time.perf_counter() - began)
    print(f"1,000 resamples of 2,620 utterances: {min(seconds):.3f} s; goal under 0.2")


def covered(trials: int, speakers: int, each: int, spread: float) -> dict[str, float]:
    """Percent of trials in which each interval holds the true 10 %."""
    rng = np.random.default_rng(7)
    found = dict.fromkeys(SCOPES, 0)
    for trial in range(trials):
        scores = made(*simulated(rng, speakers, each, spread))
        by: By
        for by in ("utterance", "speaker"):
            interval = scores.interval(seed=trial, by=by, resamples=500)
            found[by] += interval.low <= 0.1 <= interval.high
    shares = {f"covered by {SCOPES[name]} %": 100 * count / trials for name, count in found.items()}
    return {"speakers": speakers, "utterances each": each, "sd of speakers, points": 100 * spread, **shares}


def alarms(trials: int, speakers: int, each: int = 20) -> dict[str, float]:
    """Percent of trials in which each test finds two systems different that are equal on average."""
    rng = np.random.default_rng(3)
    found = {"sign-flip over speakers %": 0, "MAPSSWE %": 0, "paired t-test %": 0}
    for trial in range(trials):
        words, _, who = simulated(rng, speakers, each, 0.05)
        gain = rng.normal(0, 0.03, speakers)[who]  # b suits some speakers better, others worse
        rates = (np.full(len(words), 0.1), np.clip(0.1 + gain, 0, 1))
        a, b = (drawn(rng, words, rate, who) for rate in rates)
        found["sign-flip over speakers %"] += compare(a, b, resamples=2, seed=trial).p <= 0.05
        found["MAPSSWE %"] += mapsswe(a.operations, b.operations).p <= 0.05
        found["paired t-test %"] += paired_t(a.errors_U / a.words_U, b.errors_U / b.words_U) <= 0.05
    return {"speakers": speakers, **{name: 100 * count / trials for name, count in found.items()}}


def drawn(rng: np.random.Generator, words: np.ndarray, rate: np.ndarray, who: np.ndarray) -> Scores:
    """A system's counts and alignments, every word wrong with the utterance's rate."""
    operations = tuple("".join("CS"[int(wrong)] for wrong in rng.random(n) < r) for n, r in zip(words, rate, strict=True))
    errors = np.array([o.count("S") for o in operations])
    return made(words, errors, who, operations)


if __name__ == "__main__":
    main()
