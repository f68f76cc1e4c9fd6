"""What a training will be, before it is one: corpus, plan, padding, steps, workers, memory and time, a line each as it becomes known.

Notable: the first lines are there after a second, the last when steps of the plan have been timed, so they come one by one. A server
asks for them in a process of its own (:class:`Apart`), which takes its memory and threads along when it is told to end.

Not covered: how long validation and start-up take; what other machines are like.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from speechlab import config as configs
from speechlab.errors import InputError
from speechlab.units import clock

Line = tuple[str, str]  # name and text
DOING = "doing"  # name of a line that says what is being done now
FASTER = "--set training.precision=fp32"
AHEAD = 2**20  # bytes of a line


def inputs(experiment: configs.Experiment) -> tuple[Any, Any]:
    """An experiment's corpus and the weights it starts from, fetched where they are not there.

    Raises:
        InputError: if either is not to be had.
    """
    from speechlab import corpora, models, training
    from speechlab.batches import Clips

    models.check_family(experiment.model.family)
    corpus = corpora.configured(experiment.corpus)
    return corpus, training.begin(experiment, Clips.of(corpus))


def emulated(experiment: configs.Experiment) -> bool:
    """Whether it trains on this machine's processor at a precision that the processor has not: it then takes times as long as fp32."""
    from speechlab import provenance

    where = experiment.cluster
    if experiment.training.precision == "fp32" or where.address is not None or where.device == "cuda" or provenance.bf16_native():
        return False
    import torch  # seconds of start-up, and needed by few

    return where.device == "cpu" or not torch.cuda.is_available()


def lines(experiment: configs.Experiment, doing: Callable[[str], object] = lambda _: None) -> Iterator[Line]:
    """What a dry run says; writes no run.

    Args:
        experiment: The config.
        doing: Called with what is done next, where that takes a while.

    Yields:
        Name and text, in the order in which they become known.

    Raises:
        InputError: if something of it cannot be had.
    """
    from speechlab import budget, cluster, models, share, training
    from speechlab.batches import Clips

    yield "config", f"{experiment.name}, signature {experiment.signature}"
    doing("preparing corpus and weights")
    corpus, start = inputs(experiment)
    clips = Clips.of(corpus, experiment)
    counts = ", ".join(f"{k} {len(v)}" for k, v in corpus.cuts.items())
    yield "corpus", f"{corpus.name} ({corpus.language}), manifest {corpus.manifest_sha256[:12]}, {counts} clips"
    yield "weights", f"{start.name} from {start.source}, sha256 {start.sha256[:12]}"
    plan, epochs = training.plan_for(experiment, clips), experiment.training.epochs
    summary = plan.summary()
    steps = f"{plan.steps(epochs)} in {epochs} epochs, {experiment.training.micro_batches} micro-batches each"
    yield "steps", f"{steps}; {summary.full_steps} an epoch are heard at 30 s"
    yield "audio", f"{clock(summary.audio)} an epoch"
    heard = f"with margins and 30 s steps the encoder hears {clock(summary.heard)} an epoch"
    yield "padding", f"{100 * summary.padding:.1f} % of the batches; {heard}"
    doing("probing the memory and timing three steps of the plan")
    model = models.load(experiment.model.family, start.path, experiment.corpus.language, experiment.model).train()
    weights, learning = models.parameters(model)
    yield "parameters", f"{weights:,}, of which {learning:,} learn"
    room = budget.find(experiment, model, clips, plan, "cpu", max(1, experiment.cluster.workers))
    yield from share.explain(experiment, cluster.machines(experiment.cluster), room).items()
    limit = experiment.cluster.device_seconds or room.seconds
    estimate = budget.seconds_of_steps(experiment, clips, plan, model, limit)
    yield "estimated time", f"{clock(estimate)} of steps on this machine in one process, validation and start-up not included"
    if emulated(experiment):
        doing("timing three steps in fp32")
        plainly = experiment.model_copy(update={"training": experiment.training.model_copy(update={"precision": "fp32"})})
        other = budget.seconds_of_steps(plainly, clips, plan, model, limit)
        yield "precision", f"{experiment.training.precision}, which this processor emulates: {clock(other)} with {FASTER}"


class Apart:
    """The same from a process of its own, which can be ended.

    Args:
        path: Of the config.
        overrides: As for :func:`speechlab.config.load`.

    Attributes:
        ended: Whether it was told to end before it was done.
    """

    def __init__(self, path: Path, overrides: Sequence[str]) -> None:
        self._words = [str(path), *overrides]
        self._process: asyncio.subprocess.Process | None = None
        self.ended = False

    async def lines(self) -> AsyncIterator[Line]:
        """As :func:`lines`, with what is being done as lines named :data:`DOING`.

        Raises:
            InputError: as :func:`lines`, and if its process ends early.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "speechlab.forecast", *self._words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True, limit=AHEAD,
        )  # fmt: skip
        if self.ended:  # while it was being started
            self._kill()
        assert process.stdout is not None
        try:
            async for text in process.stdout:
                try:
                    name, told = json.loads(text)
                except ValueError:  # not a line of ours: some library printed
                    continue
                if name == "error":
                    raise InputError(told)
                yield name, told
            status = await process.wait()
        finally:
            self._kill()
            await process.wait()
        if status and not self.ended:
            raise InputError(
                "The dry run's process ended.", got=f"exit status {status}", do="speechlab train --dry-run in a shell says why"
            )

    def end(self) -> None:
        """End its process, and those that it has started."""
        self.ended = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def main(words: Sequence[str]) -> int:
    """Write the lines of a config and its overrides to standard output, as JSON, an error among them."""

    def tell(name: str, text: str) -> None:
        print(json.dumps([name, text]), flush=True)

    try:
        for line in lines(configs.load(words[0], list(words[1:])), lambda what: tell(DOING, what)):
            tell(*line)
    except InputError as e:
        tell("error", str(e))
    except Exception as e:
        tell("error", f"{type(e).__name__}: {e}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
