"""What each worker gets of the machines: cores, a GPU, memory, micro-batches; worked out before anything starts.

One GPU a worker where there are any, with cores for its loader; else as many cores as let all workers find room. A
machine is a mapping of Ray's names to amounts, so all of this can be asked of machines that are not there.

Not covered: parts of a GPU, machines that other jobs fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechlab.config import ClusterConfig, Experiment
from speechlab.errors import InputError

if TYPE_CHECKING:
    from speechlab.budget import Budget

Machine = Mapping[str, float]  # CPU, GPU


@dataclass(frozen=True)
class Share:
    """What one worker gets.

    Attributes:
        cpus: Cores: its threads, and with a GPU its loader workers.
        gpu: Whether it has one.
    """

    cpus: int
    gpu: bool

    @classmethod
    def of(cls, wanted: ClusterConfig, machines: Sequence[Machine]) -> Share:
        """As many cores as leave room for all workers.

        Args:
            wanted: With at least one worker.
            machines: At least one.

        Raises:
            InputError: if there is no room for ``workers``, or where ``workers_min`` is given, for these.
        """
        from speechlab.decoding import resolve_device

        gpu = resolve_device(wanted.device, any(m.get("GPU", 0) >= 1 for m in machines)) == "cuda"
        least, room = wanted.workers_min or wanted.workers, cls(1, gpu).room(machines)
        if room < least:
            has = "; ".join(f"{m.get('CPU', 0):g} CPUs, {m.get('GPU', 0):g} GPUs" for m in machines)
            raise InputError(
                "The machines have no room for so many workers.",
                got=f"room for {room} on {_count(len(machines), 'machine')}: {has}",
                expected=f"{'1 GPU and ' if gpu else ''}1 CPU for each of cluster.workers{'_min' * bool(wanted.workers_min)} = {least}",
                do="ask for fewer workers, or add machines; cluster.workers_min begins with those that there are",
            )
        target = min(wanted.workers, room)
        cpus = 1 + wanted.loader_workers if gpu else int(max(m.get("CPU", 0) for m in machines))
        while cls(cpus, gpu).room(machines) < target:
            cpus -= 1
        return cls(cpus, gpu)

    @property
    def resources(self) -> dict[str, float]:
        """In Ray's names."""
        return {"CPU": self.cpus, **({"GPU": 1} if self.gpu else {})}

    def room(self, machines: Sequence[Machine]) -> int:
        """How many workers with such a share the machines hold."""
        return sum(int(min(m.get(kind, 0) // each for kind, each in self.resources.items())) for m in machines)

    def __str__(self) -> str:
        return f"{'1 GPU and ' if self.gpu else ''}{_count(self.cpus, 'CPU')}"


def explain(experiment: Experiment, machines: Sequence[Machine], budget: Budget) -> dict[str, str]:
    """What a dry run says of workers, memory and steps.

    Args:
        experiment: The config.
        machines: That it would run on.
        budget: Of one worker on this machine.
    """
    wanted, parts = experiment.cluster, experiment.training.micro_batches
    heard = wanted.device_seconds or budget.seconds
    needed = budget.fixed + heard * budget.per_second
    memory = (
        f"{needed / 1e9:.1f} GB a worker at {heard:.0f} s heard in a pass: {budget.fixed / 1e9:.1f} GB, "
        f"and {budget.per_second / 1e6:.0f} MB a second; were all on this machine, {budget.free / 1e9:.1f} GB would be free for each"
    )
    even = f"{parts} micro-batches; shared evenly by {_either([n for n in range(1, parts + 1) if parts % n == 0])} workers"
    if not wanted.workers:
        return {"workers": "none: this process trains, without Ray", "memory": memory, "a step": even}
    try:
        share = Share.of(wanted, machines)
    except InputError as e:  # a plan for machines that are elsewhere is worth seeing here
        return {"workers": " ".join(line.strip() for line in str(e).splitlines()), "memory": memory, "a step": even}
    now = min(wanted.workers, share.room(machines))
    workers = f"{now} with {share} each on {_count(len(machines), 'machine')}; gradients by {'nccl' if share.gpu else 'gloo'}"
    if wanted.workers_min:
        workers += f"; elastic, {wanted.workers_min} to {wanted.workers}"
    each = _either(sorted({parts // now, -(-parts // now)}))
    return {"workers": workers, "memory": memory, "a step": f"{even}: {each} for each of {now}"}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _either(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
