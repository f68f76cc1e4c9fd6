"""Where training runs: Ray workers, from one process on this machine to many nodes.

Three ways in: :func:`drive` trains a run from this process, :func:`launch` does so in a process of its own
(what the notebook uses, so that the kernel stays free), :func:`finished` waits for it. Checkpoints and
events live in the run directory, not in Ray's: a lost worker is restarted by Ray, finds its place
there, and a lost driver is resumed by driving the same run again.

With ``cluster.workers_min`` the number of workers follows the machines: as many as there is room for, from workers_min to
workers. When one is lost, training goes on from the newest checkpoint with those that are left; when one comes, with
more. The plan is the same for any number, so the sequence of clips is too; only float sums are in another order.

On a cluster of several nodes the run directory must lie on storage that all of them mount. Not covered: a checkpoint
made for the sake of a machine that comes or is about to go (``training.checkpoint_steps`` bounds what is done twice).
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from speechlab import detached, head, pool, storage
from speechlab.config import ClusterConfig, Experiment
from speechlab.errors import InputError
from speechlab.runs import Event, Run
from speechlab.share import Machine, Share
from speechlab.units import Seconds

RESIZE: Seconds = 60.0  # between two looks for machines that came, where the number of workers is elastic
PATIENCE: Seconds = 60.0  # without machines enough, until the run says that it waits for them
STOP_GRACE: Seconds = 60.0  # from the first Ctrl-C until the workers are ended without their consent
FAREWELL: Seconds = 20.0  # for Ray's controller to end
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
UNREACHED = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer", re.IGNORECASE)


class TrainingFailed(RuntimeError):
    """Training ended with an error that is not the user's input; the run can be resumed."""


def drive(run: Run, *, quiet: bool = True, heard: Callable[[Event], None] | None = None) -> str:
    """Train a run to its end, or until it is stopped.

    Ctrl-C or SIGTERM once saves a checkpoint and stops; twice ends the workers at once.

    Args:
        run: New, or interrupted: it goes on from its newest intact checkpoint.
        quiet: Keep Ray's own log out of the terminal.
        heard: Called with each event that this process writes, which is every one where it trains without Ray.

    Returns:
        The run's state: ``finished`` or ``stopped``.

    Raises:
        InputError: if the input is at fault, or Ray cannot start.
        TrainingFailed: if workers were lost more often than ``cluster.max_failures``, or raised.
    """
    experiment = run.config
    with run.lock(), storage.mirrored(run):
        run.stop_file.unlink(missing_ok=True)
        try:
            with _signals(run) as interrupts:
                if experiment.cluster.workers == 0:
                    _work(run.path, _alone(experiment), heard)
                else:
                    _drive_ray(run, experiment, interrupts, quiet)
        except Exception as e:
            _fail(run, str(e) if isinstance(e, InputError) else f"{type(e).__name__}: {e}")
            raise
    return run.state


def launch(run: Run, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes] | None:
    """Drive a run in a process and session of its own, which outlives this one; output in driver.log.

    Args:
        run: The run.
        environment: Variables of the process that differ from this one's.

    Returns:
        The process, or None where nothing is to be done: the run has finished, or is being driven already.
    """
    if run.state in ("finished", "running"):
        return None
    return detached.start(run.path, "train", "--resume", str(run.path), "--no-progress", environment=environment)


async def finished(run: Run, process: subprocess.Popen[bytes] | None = None, poll: Seconds = 0.2) -> str:
    """Wait without blocking the kernel until a launched run has ended.

    Args:
        run: The run.
        process: From :func:`launch`; without one, another process drives the run.
        poll: Between two looks.

    Returns:
        ``finished`` or ``stopped``.

    Raises:
        TrainingFailed: with the worker's error in readable form.
    """
    while process.poll() is None if process else run.locked():
        await asyncio.sleep(poll)
    if run.state in ("finished", "stopped"):
        return run.state
    if run.state == "failed":
        raise TrainingFailed(f"Run {run.id} failed.\n{_last_error(run)}")
    raise TrainingFailed(
        f"The process that drove run {run.id} ended before the run did.\n{detached.said(run.path)}\n"
        f"  do:       go on with: speechlab train --resume {run.id}"
    )


# -- one worker ---------------------------------------------------------------------------------


def _work(path: Path, world: Any, heard: Callable[[Event], None] | None = None) -> None:
    """What every worker does: prepare, train, and on rank 0 write the events."""
    from speechlab import corpora, provenance, training
    from speechlab.batches import Clips

    run = Run(path)
    experiment = run.config
    world.same_bits(run)
    try:
        corpus = corpora.configured(experiment.corpus)
        start = training.begin(experiment, Clips.of(corpus))
        if world.rank == 0 and not run.provenance:
            provenance.keep(run, corpus, start, world.size, world.device)
        for event in training.train(experiment, corpus, str(start.path), run, world):
            if world.rank == 0:
                run.append(event)
                if heard:
                    heard(event)
    except InputError as e:
        # the driver ends the run at this event: restarting would meet the same input again
        _fail(run, str(e))
        raise


def _ray_worker(settings: dict[str, Any]) -> None:
    import ray.train
    import torch

    from speechlab.world import World

    context = ray.train.get_context()
    torch.set_num_threads(settings["threads"])
    device = str(ray.train.torch.get_device())
    _work(Path(settings["run"]), World(context.get_world_rank(), context.get_world_size(), device))


def _alone(experiment: Experiment) -> Any:
    import torch

    from speechlab.decoding import resolve_device
    from speechlab.world import World

    return World(device=resolve_device(experiment.cluster.device, torch.cuda.is_available()))


# -- the driver ---------------------------------------------------------------------------------


def _drive_ray(run: Run, experiment: Experiment, interrupts: list[float], quiet: bool) -> None:
    wanted = experiment.cluster
    # twice the cores: a restarted worker need not wait until Ray has back what the lost one held
    head.start(wanted.address, cores=2 * max(pool.cores(), wanted.workers), quiet=quiet)
    import ray

    with ExitStack() as ending:
        ending.callback(ray.shutdown)
        share = Share.of(wanted, _machines(wanted))
        trainer = _trainer(run, wanted, share, quiet)
        outcome: dict[str, BaseException] = {}
        # in a thread, where fit() installs no signal handler of its own
        fit = threading.Thread(target=_fit, args=(trainer, outcome), name="fit", daemon=True)
        news = run.tail()
        news.read()  # what an earlier driver left
        fit.start()
        ending.callback(_dismiss, fit)
        enough = time.monotonic()
        while fit.is_alive():
            fit.join(0.2)
            for event in news.read():
                if event["kind"] == "failure":
                    raise InputError(event["error"])  # a worker says so, and no restart will mend it
                if event["kind"] == "start" and event["workers"] < wanted.workers:
                    run.warn(f"training with {event['workers']} of {wanted.workers} workers")
            if len(interrupts) > 1 or (interrupts and time.monotonic() - interrupts[0] > STOP_GRACE):
                run.append({"kind": "stopped", "step": next((e["step"] for e in reversed(run.events()) if e["kind"] == "step"), 0)})
                break
            if wanted.workers_min and time.monotonic() > enough + PATIENCE:
                if share.room(_machines(wanted)) < wanted.workers_min:  # Ray waits for ever, and says nothing
                    run.warn(f"waiting for machines: there is room for fewer than cluster.workers_min = {wanted.workers_min} workers")
                enough = time.monotonic()
        if "error" in outcome:
            raise TrainingFailed(_worker_error(outcome["error"]))


def _dismiss(fit: threading.Thread) -> None:
    """End Ray's controller, so that ``fit`` returns: shut down under a thread that waits for it, Ray at times aborts the process."""
    import ray

    until = time.monotonic() + FAREWELL
    with suppress(Exception):  # a cluster that is gone has no controller
        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        while fit.is_alive() and time.monotonic() < until:
            # nothing public leads to the controller: fit() keeps its handle to itself
            for name, actor in ray._private.state.actors(job_id=job).items():
                if actor["ActorClassName"] == "TrainController" and actor["State"] != "DEAD":
                    ray._private.worker.global_worker.core_worker.kill_actor(ray.ActorID.from_hex(name), True)
            fit.join(0.2)


def machines(wanted: ClusterConfig) -> list[Machine]:
    """The machines that would train; connects to the cluster at ``cluster.address``, if there is one, and starts nothing.

    Raises:
        InputError: if it cannot be reached.
    """
    if wanted.address is None:
        return _machines(wanted)
    head.start(wanted.address, cores=0)
    import ray

    try:
        return _machines(wanted)
    finally:
        ray.shutdown()


def _machines(wanted: ClusterConfig) -> list[Machine]:
    """This one, whose cores may be shared by more workers than there are, or those of the cluster connected to."""
    if wanted.address is None:
        import torch

        return [{"CPU": max(pool.cores(), wanted.workers), "GPU": torch.cuda.device_count()}]
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _trainer(run: Run, wanted: ClusterConfig, share: Share, quiet: bool) -> Any:
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    return TorchTrainer(
        _ray_worker,
        # here as many as without Ray, which OMP_NUM_THREADS may limit: their number changes the bits
        train_loop_config={"run": str(run.path), "threads": min(share.cpus, torch.get_num_threads() if not wanted.address else share.cpus)},
        torch_config=TorchConfig(backend="nccl" if share.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(wanted.workers_min, wanted.workers) if wanted.workers_min else wanted.workers,
            use_gpu=share.gpu,
            resources_per_worker=share.resources,
            elastic_resize_monitor_interval_s=RESIZE,
        ),
        run_config=RunConfig(
            # a name of its own for each drive: Ray resumes a name it knows, and the run directory does that here
            name=f"{run.id}-{time.time_ns()}",
            storage_path=str(run.path / "ray"),
            # a lost machine costs a failure and, while Ray still believes in it, one of the controller's
            failure_config=FailureConfig(max_failures=wanted.max_failures, controller_failure_limit=wanted.max_failures + 3),
            logging_config=LoggingConfig("ERROR") if quiet else None,
        ),
    )


def _fit(trainer: Any, outcome: dict[str, BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as e:
        outcome["error"] = e


@contextmanager
def _signals(run: Run) -> Iterator[list[float]]:
    """Turn the first SIGINT or SIGTERM into the run's stop file, and note when each came."""
    came: list[float] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        came.append(time.monotonic())
        run.stop()
        if len(came) > 1 and run.config.cluster.workers == 0:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(run: Run, error: str) -> None:
    if _last_error(run) != error or run.events()[-1]["kind"] != "failure":
        with suppress(InputError, OSError):  # a full disk cannot take the event either; the caller raises
            run.append({"kind": "failure", "error": error})


def _last_error(run: Run) -> str:
    return next((e["error"] for e in reversed(run.events()) if e["kind"] == "failure"), "")


def _worker_error(error: BaseException) -> str:
    """The cause in one readable cell: one worker's exception without Ray's wrapping and colours."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    # where one worker is lost, the others complain that they cannot reach it: theirs is not the cause
    rank, cause = min(failures.items(), key=lambda item: (bool(UNREACHED.search(str(item[1]))), item[0]))
    lines = [line for line in COLOUR.sub("", str(cause)).strip().splitlines() if line.strip()]
    text = "\n".join(line[:300] for line in lines[-12:]) or type(cause).__name__
    if "TrainController" in text:  # the cluster could not call back
        text += "\n  do: see that RAY_AUTH_MODE and the token are the same here and on every machine of the cluster"
    return f"worker {rank}: {text}" if hasattr(error, "worker_failures") else text
