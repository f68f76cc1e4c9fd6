"""Test sets of any size through a system, by worker processes on the cores or GPUs of a machine or of a Ray cluster.

Notable: clips go in blocks of like durations through Ray Data. A block's answers appear when they are whole, so what was
stopped, or whose machine died, goes on with the blocks that are missing; they lie under a name made of the weights, of what
is heard and of how it is decoded, so nobody takes another's. Answers depend on none of workers, blocks and order. This process
holds a few numbers a clip and one block's answers.

A clip that brings its worker down is found by the block's journal, which names what was in hand: a batch's clips are then
decoded one by one, and one over which its worker dies twice while it is alone is answered with the reason.

Not covered: models that do not fit one device; folders that only one machine of the cluster sees; latency, which is timed
in one process (:mod:`speechlab.evaluation`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from speechlab import cluster, decoding, fusion, head, memory, models
from speechlab.config import EvaluationConfig, Experiment, SearchConfig
from speechlab.decoding import Decoded
from speechlab.errors import InputError
from speechlab.runs import write_atomic
from speechlab.units import Seconds

BLOCK: Seconds = 600.0  # audio of a block: what a worker that dies costs at most
DEATHS = 2  # of a worker over the same clip alone, after which the clip is to blame
LOADS = 3  # deaths of workers that load the model, after which the model is


@dataclass(frozen=True)
class System:
    """A model that can be evaluated.

    Attributes:
        name: As in tables: ``pretrained``, ``finetuned``, ``tiny.en``.
        family: A key of :data:`speechlab.models.FAMILIES`.
        folder: Of its weights.
        sha256: Their digest.
        language: Of the speech, for models that are told.
        origin: Where the weights come from, in words.
    """

    name: str
    family: str
    folder: str
    sha256: str
    language: str
    origin: str = ""

    @property
    def contexts(self) -> tuple[str, ...]:
        """In which it can transcribe, the usual one first."""
        found: tuple[str, ...] = models.family_class(self.family).contexts
        return found

    def how(self, search: SearchConfig | None, precision: str, device: str, texts: Sequence[str]) -> dict[str, str]:
        """What decides about hypotheses beside weights, clips and context."""
        found = fusion.identity(search, texts) if search and self.contexts == ("clip",) else "greedy"
        return {"device": device, "precision": precision, "search": found}

    def load(self, search: SearchConfig | None, device: str, texts: Sequence[str]) -> Any:
        """The model on a device, ready to transcribe.

        Args:
            search: For models of CTC; None writes what is likeliest.
            device: Torch device.
            texts: Training transcripts, where the search needs them.

        Raises:
            InputError: as for :func:`speechlab.models.load` and :func:`speechlab.fusion.searcher`.
        """
        model = models.load(self.family, self.folder, self.language).to(device).eval()
        if search and hasattr(model, "search"):
            model.search = fusion.searcher(model.vocabulary, search, texts)
        return model


@dataclass(frozen=True)
class Part:
    """What a block came to.

    Attributes:
        answers: One a clip.
        memory_bytes: Most that its worker took, weights included.
    """

    answers: list[Decoded]
    memory_bytes: float


@dataclass(frozen=True)
class _Job:
    """What workers are told of an evaluation; equal for all of its blocks."""

    folder: Path
    system: System
    module: str  # of the family, which this process may have registered
    search: SearchConfig | None
    context: str
    batch_seconds: Seconds
    precision: str
    device: str
    cut: Any  # the class of the cuts


@dataclass
class _Loaded:
    """A worker's model, and the memory that was in use before it."""

    model: Any
    before: float
    warm: bool = False


class Workers:
    """Processes that decode: started with the first block that is missing, ended with the ``with`` block; one thread or GPU each.

    Args:
        count: How many; on GPUs at most as many as there are, the others wait.
        folder: Under whose ``parts`` the blocks are kept; on a cluster, one that all machines see.
        address: Of a Ray cluster; None uses this machine.
        block: Seconds of audio of a block.
    """

    def __init__(self, count: int, folder: Path, address: str | None = None, block: Seconds = BLOCK) -> None:
        self.count, self._parts, self._address, self._block = count, folder.absolute() / "parts", address, block
        self._started = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._started:
            import ray

            ray.shutdown()
            self._started = False

    def decode(
        self,
        system: System,
        cuts: Iterable[Any],
        name: str,
        sha256: str,
        settings: EvaluationConfig,
        *,
        context: str,
        precision: str = "bf16",
        device: str = "cpu",
        texts: Sequence[str] = (),
    ) -> Iterator[Part]:
        """Decode cuts, going on where an earlier call stopped.

        Args:
            system: What decodes.
            cuts: lhotse cuts with one id each, in any order; taken once, and not kept in memory.
            name: Of the evaluation, for a folder.
            sha256: Of what is heard: equal where the same clips are.
            settings: Search and size of a batch are used.
            context: One of the system's.
            precision: As for :func:`speechlab.decoding.decode`.
            device: Of every worker: ``cpu``, or ``cuda`` for a GPU each.
            texts: Training transcripts, where the settings' search needs them.

        Yields:
            Blocks that are there already, then the others as they are done.

        Raises:
            InputError: if Ray cannot start, or the model cannot be loaded.
        """
        how = system.how(settings.search, precision, device, texts)
        identity = {"weights": system.sha256, "language": system.language, "heard": sha256, "context": context, **how, "block": self._block}
        state = json.dumps(identity, indent=1, sort_keys=True).encode()
        folder = self._parts / name / hashlib.sha256(state).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "state.json", state)
        if settings.search:
            write_atomic(folder / "texts.json", json.dumps(list(texts)).encode())
        cut, places = _spool(cuts, folder, self._block)
        pending = [number for number in range(len(places)) if not _part(folder, number).exists()]
        for number in sorted(set(range(len(places))) - set(pending)):
            yield _read(folder, number)
        random.Random(0).shuffle(pending)  # noqa: S311 - short and long ones mixed, so that a bar's estimate holds
        where = models.FAMILIES[system.family]
        job = _Job(folder, system, where, settings.search, context, settings.batch_seconds, precision, device, cut)
        rows = [{"block": number, "start": places[number][0], "stop": places[number][1]} for number in pending]
        for row in self._run(rows, partial(_work, job=job), gpu=device == "cuda") if rows else ():
            if row["error"]:
                raise InputError(row["error"])
            yield _read(folder, int(row["block"]))

    def forget(self, name: str) -> None:
        """Delete an evaluation's blocks, when its table is kept."""
        shutil.rmtree(self._parts / name, ignore_errors=True)
        with suppress(OSError):
            self._parts.rmdir()  # if it was the last

    def _run(self, rows: list[dict[str, Any]], work: Callable[[dict[str, Any]], dict[str, Any]], gpu: bool) -> Iterator[dict[str, Any]]:
        """Do every block; yields what ``work`` said, as they are done."""
        if not self._started:
            head.start(self._address, cores=self.count)
            self._started = True
        import ray.data  # configures its own logging, to the terminal

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False
        settings.enable_operator_progress_bars = False
        blocks = ray.data.from_items(rows, override_num_blocks=len(rows))
        # a worker that is brought down is started again without end, and finds in the block's journal what was in hand
        share = {"num_cpus": 1, "num_gpus": 1} if gpu else {"num_cpus": 1}
        yield from blocks.map(work, compute=ray.data.TaskPoolStrategy(size=self.count), **share).iter_rows()


def device(experiment: Experiment) -> str:
    """The torch device that an experiment's test clips are decoded on: of this machine, or of its cluster where workers decode.

    Raises:
        InputError: if CUDA is asked for and absent; or latency, which is timed here, where only the cluster has a GPU.
    """
    wanted, here = experiment.cluster, torch.cuda.is_available()
    if not experiment.evaluation.workers or wanted.address is None:
        return decoding.resolve_device(wanted.device, here)
    found = decoding.resolve_device(wanted.device, any(machine.get("GPU", 0) >= 1 for machine in cluster.machines(wanted)))
    if found == "cuda" and not here and experiment.evaluation.latency:
        raise InputError("Latency is timed in this process, which has no GPU as the cluster has.", got="evaluation.latency: true",
                         do="set evaluation.latency to false, or cluster.device to cpu")  # fmt: skip
    return found


# -- blocks -------------------------------------------------------------------------------------


def _spool(cuts: Iterable[Any], folder: Path, block: Seconds) -> tuple[Any, list[tuple[int, int]]]:
    """Write cuts down, so that a worker reads its own and nothing else; gives their class and each block's places in the order."""
    seconds, ties, places, cut = array("d"), array("Q"), array("q"), None
    part = folder / "cuts.jsonl.part"
    with part.open("wb") as f:
        for cut in cuts:
            seconds.append(cut.duration)
            ties.append(int.from_bytes(hashlib.sha256(cut.id.encode("utf-8", "surrogatepass")).digest()[:8]))
            places.append(f.tell())
            f.write(json.dumps(cut.to_dict()).encode() + b"\n")
    part.replace(folder / "cuts.jsonl")
    order = np.lexsort((np.array(ties), np.array(seconds)))
    table = io.BytesIO()
    np.save(table, np.array(places)[order])
    write_atomic(folder / "places.npy", table.getvalue())
    return type(cut), spans(np.array(seconds)[order].tolist(), block)


def spans(seconds: Sequence[Seconds], block: Seconds) -> list[tuple[int, int]]:
    """Where blocks begin and end in clips of these durations: as many as fit into so many seconds, one at least.

    >>> spans([1.0, 2.0, 3.0, 9.0], 5.0)
    [(0, 2), (2, 3), (3, 4)]
    """
    starts: list[int] = []
    filled = 0.0
    for i, each in enumerate(seconds):
        if not starts or filled + each > block:
            starts.append(i)
            filled = 0.0
        filled += each
    return list(pairwise([*starts, len(seconds)])) if starts else []


def _cuts(job: _Job, start: int, stop: int) -> list[Any]:
    places = np.load(job.folder / "places.npy", mmap_mode="r")[start:stop].tolist()
    found = []
    with (job.folder / "cuts.jsonl").open("rb") as f:
        for place in places:
            f.seek(place)
            found.append(job.cut.from_dict(json.loads(f.readline())))
    return found


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _read(folder: Path, number: int) -> Part:
    kept = json.loads(_part(folder, number).read_bytes())
    return Part([Decoded(**{**row, "confidences": tuple(row["confidences"])}) for row in kept["answers"]], kept["memory_bytes"])


# -- one worker ---------------------------------------------------------------------------------


def _work(row: dict[str, Any], job: _Job) -> dict[str, Any]:
    """Decode a block and write its answers; what the user has to mend is said, not raised, as Ray would bury it."""
    number, error = int(row["block"]), ""
    if not _part(job.folder, number).exists():  # a machine that was lost may have done it before
        try:
            _decode(number, _cuts(job, int(row["start"]), int(row["stop"])), job)
        except InputError as e:
            error = str(e)
    return {"block": number, "error": error}


def _decode(number: int, cuts: list[Any], job: _Job) -> None:
    journal = job.folder / f"{number:06d}.at"
    try:
        deaths = json.loads(journal.read_text())
    except (OSError, ValueError):
        deaths = {}

    def hold(clips: dict[str, int]) -> None:
        """Write down what is true if this process dies now: by clip how often alone, so 0 for those of a batch."""
        journal.write_text(json.dumps(deaths | clips))

    loads = deaths.pop("", 0)
    if loads >= LOADS:
        hold({})
        raise InputError("The model brings its workers down.", got=f"{job.system.name}: {loads} died while they loaded it",
                         expected="memory for a model in every worker", do="ask for fewer workers")  # fmt: skip
    hold({"": loads + 1})
    models.FAMILIES.setdefault(job.system.family, job.module)
    worker = _loaded(job.system, job.search, job.device, job.folder if job.search else None)
    decode = partial(decoding.decode, worker.model, context=job.context, precision=job.precision, device=job.device)

    answers = []
    for cut in cuts:
        if deaths.get(cut.id, 0) >= DEATHS:
            said = cut.supervisions[0]
            why = "its worker died twice while it was decoded alone"
            answers.append(Decoded(cut.id, said.speaker or "", cut.duration, said.text, "", ended=False, problem=why))
        elif cut.id in deaths:
            hold({cut.id: deaths[cut.id] + 1})
            answers += [answer for part in decode([cut]) for answer in part]
    planned = decoding.plan([cut for cut in cuts if cut.id not in deaths], job.batch_seconds)
    flights = [{cut.id: 0 for batch in planned[n : n + 2] for cut in batch} for n in range(len(planned))]  # one is decoded, one read
    hold(flights[0] if flights else {})  # of a block whose every clip was tried alone nothing is left
    if planned and not worker.warm:
        for _ in decode(planned[0][:4]):
            pass  # as in evaluation.evaluate: the first batch pays for what is made once
        worker.warm = True
    for following, part in zip(
        [*flights, {}][1:], decode([cut for batch in planned for cut in batch], seconds=job.batch_seconds), strict=True
    ):
        answers += part
        hold(following)
    took = max(memory.peak(job.device) - worker.before, 0.0)
    write_atomic(_part(job.folder, number), json.dumps({"memory_bytes": took, "answers": [asdict(answer) for answer in answers]}).encode())
    journal.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _loaded(system: System, search: SearchConfig | None, device: str, folder: Path | None) -> _Loaded:
    """A worker's model, once; the folder holds the search's texts."""
    if device == "cpu":
        torch.set_num_threads(1)
    memory.trim()
    memory.forget_peak(device)
    before = memory.used(device)
    return _Loaded(system.load(search, device, json.loads((folder / "texts.json").read_text()) if folder else ()), before)
