"""Models served by Ray Serve: recordings go in over HTTP (:mod:`speechlab.front`), text with times comes out, and each key has its model.

Notable: a model is a deployment of its own whose replicas hear requests in common batches (:mod:`speechlab.batcher`). An alias of the
registry is pinned to its version at the start.

Not covered: replicas that come and go with the load; fronts on several machines.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechlab import head, pool, ports, routes
from speechlab.errors import InputError
from speechlab.front import BODY, Front
from speechlab.routes import BatchConfig, ServeConfig
from speechlab.units import Seconds

GRACE: Seconds = 20.0  # for requests at hand, when it ends


class Asked(NamedTuple):
    """A model of a route, and what stands for it now."""

    name: str
    language: str


@dataclass(frozen=True)
class Pinned:
    """What a name stood for when the server was started.

    Attributes:
        name: That leads to it, as for :func:`speechlab.systems.resolve`.
        version: ``models:/name/version``, or the beginning of the SHA-256 of its weights.
    """

    name: str
    version: str


def run(path: str | Path, started: Callable[[str], None] = lambda _: None) -> None:
    """Serve what a config says, until SIGINT or SIGTERM.

    Args:
        path: A YAML file of :class:`speechlab.routes.ServeConfig`.
        started: Called with the address once it answers.

    Raises:
        InputError: if the config, a model or the port cannot be used, or Ray cannot start.
    """
    wanted = routes.load(path)
    token, pinned = routes.token(wanted), pin(wanted)
    if wanted.cluster is None:
        ports.need_free(wanted.address, wanted.port, "set another port")
    over = threading.Event()
    head.start(wanted.cluster, cores=2 * pool.cores() + len(pinned) * wanted.replicas)
    import ray
    from ray import serve

    before = {n: signal.signal(n, lambda *_: over.set()) for n in (signal.SIGINT, signal.SIGTERM)}  # Ray has set its own
    try:
        _deploy(wanted, Path(path).resolve(), token, pinned)
        started(f"http://{f'[{wanted.address}]' if ':' in wanted.address else wanted.address}:{wanted.port}")
        over.wait()
    finally:
        ending = threading.Thread(target=serve.shutdown, daemon=True)  # which waits for ever where Ray itself was ended
        ending.start()
        ending.join(GRACE)
        ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def pin(wanted: ServeConfig) -> dict[Asked, Pinned]:
    """The models of a config as they are now: an alias may move while they are served.

    Raises:
        InputError: as for :func:`speechlab.systems.resolve`.
    """
    from speechlab import systems, versions

    found = {}
    for route in wanted.routes:
        for offer in route.models:
            name = versions.named(offer.name, wanted.registry).name if versions.is_name(offer.name) else offer.name
            system = systems.resolve(name, route.language, wanted.registry)
            found[Asked(offer.name, route.language)] = Pinned(name, name if versions.is_name(name) else system.sha256[:12])
    return found


def _deploy(wanted: ServeConfig, path: Path, token: str, pinned: dict[Asked, Pinned]) -> None:
    from ray import serve

    for name in ("ray.serve", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    threads = wanted.threads or max(1, pool.cores() // (len(pinned) * wanted.replicas))
    handles = {}
    for i, (asked, what) in enumerate(pinned.items()):
        model = serve.deployment(
            Replica,
            name=f"model-{i}",
            num_replicas=wanted.replicas,
            max_ongoing_requests=wanted.batch.waiting,
            ray_actor_options={"num_cpus": 1, "num_gpus": wanted.gpus},
            logging_config=quiet,
        )
        how = (wanted.device, wanted.precision, wanted.registry)
        handles[f"{asked.language} {asked.name}"] = model.bind(what.name, asked.language, how, wanted.batch, threads)
    front = serve.deployment(Front, name="front", max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 1}, logging_config=quiet)
    http = {"host": wanted.address, "port": wanted.port, "request_timeout_s": wanted.timeout + 2 * BODY}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
    try:
        versions = {f"{asked.language} {asked.name}": what.version for asked, what in pinned.items()}
        serve.run(front.bind(wanted, path, token, versions, handles), name="speechlab", route_prefix="/", logging_config=quiet)
    except RuntimeError as e:
        raise InputError(
            "The models could not be deployed.", got=str(e)[-1500:], do="see that each can transcribe: speechlab transcribe"
        ) from None


# -- a model ----------------------------------------------------------------------------------------


class Replica:
    """A process of Ray's that holds one model.

    Args:
        name: As for :func:`speechlab.systems.resolve`.
        language: Of the speech.
        how: Device, precision and registry, as for :func:`speechlab.systems.ready`.
        batch: How requests are heard together.
        threads: For torch.
    """

    def __init__(self, name: str, language: str, how: tuple[str, str, str | None], batch: BatchConfig, threads: int) -> None:
        import torch

        from speechlab import systems
        from speechlab.batcher import Batcher

        torch.set_num_threads(threads)
        ready = systems.ready(name, language, *how)
        self._name, self._ids = name, itertools.count()
        self._batcher = Batcher(most=batch.seconds, wait=batch.wait, ready=lambda *_: ready, threads=threads)

    async def hear(self, wave_N: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Text and words of a recording, or the error that is its sender's."""
        from speechlab.passages import Passage

        loop, coming, id = asyncio.get_running_loop(), asyncio.Queue[Any](), next(self._ids)

        def tell(found: Any) -> None:
            loop.call_soon_threadsafe(coming.put_nowait, found)

        self._batcher.ask(id, self._name, "", wave_N, tell)
        heard: list[Passage] = []
        try:
            while isinstance(found := await coming.get(), Passage):
                heard.append(found)
        finally:
            self._batcher.drop(id)  # also where nobody waits for it any more
        if isinstance(found, Exception):
            return {"error": str(found)}
        words = [asdict(word) for passage in heard for word in passage.words]
        return {"text": " ".join(p.text for p in heard if p.words), "words": words, "ended": all(p.ended for p in heard)}
