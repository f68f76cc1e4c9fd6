"""Models served over HTTP by Ray Serve: recordings go in, text with times comes out, and each key has its model.

``POST PATH`` takes a recording as it is, ``GET /health`` says who answers, ``GET /stats`` how they fare. A request's key, in the header
``X-Key`` or as ``?key=``, decides which model answers; without one each request is a draw of its own.

Notable: a model is a deployment of its own whose replicas hear requests in common batches (:mod:`speechlab.batcher`). An alias of the
registry is pinned to its version at the start. Weights alone are read anew when the config file changes, so a canary grows without
a restart. What was asked is written down a line a request, without sound, key or, unless that is wished, text.

Not covered: TLS, which a proxy in front does; keys of several tenants; parts of a text before all of it is heard.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import itertools
import json
import logging
import secrets
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from speechlab import cluster, pool, routes, uploads
from speechlab.errors import InputError
from speechlab.routes import BatchConfig, Route, ServeConfig
from speechlab.units import SAMPLE_RATE, Seconds

BODY: Seconds = 60.0  # for an upload to come
LOOK: Seconds = 1.0  # between two looks at the config's weights
HEARD_OUT = 4  # times the largest upload is read to its end: who is cut off while sending would not see why
GRACE: Seconds = 20.0  # for requests at hand, when it ends
KEPT = 1000  # latencies of each model, for /stats
KEY = 256  # characters that count of a key


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


class _Refused(Exception):
    """A request that is answered with another status than 200."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        super().__init__(problem)
        self.status, self.headers = status, headers


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
        _check_free(wanted)
    over = threading.Event()
    cluster.start_ray(wanted.cluster, cores=2 * pool.cores() + len(pinned) * wanted.replicas)
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


def _check_free(wanted: ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in wanted.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((wanted.address, wanted.port))
        except OSError as e:
            raise InputError("The port cannot be had.", got=f"{wanted.address}:{wanted.port} ({e})", do="set another port") from None


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


# -- the front ----------------------------------------------------------------------------------------


class Front:
    """Who is asked over HTTP: looks at the request, decodes the upload, chooses the model, writes down what came of it.

    Args:
        wanted: The config.
        path: Its file, whose weights are looked at again.
        token: That a request has to show; empty if none.
        versions: By language and name, what answers.
        models: By language and name, handles of the deployments.
    """

    def __init__(self, wanted: ServeConfig, path: Path, token: str, versions: dict[str, str], models: dict[str, Any]) -> None:
        self._wanted, self._path, self._token, self._versions, self._models = wanted, path, token, versions, models
        self._routes = {route.path: route for route in wanted.routes}
        self._looked, self._seen = 0.0, self._stamp()
        self._waiting: Counter[str] = Counter()
        self._counts = {what: Counter[str]() for what in models}
        self._latencies = {what: deque[Seconds](maxlen=KEPT) for what in models}
        self._since = time.time()
        uploads.PRELOADED.append("ray")  # each of its processes begins as Ray's own do, and would import it anew
        with suppress(InputError):
            uploads.decoded(b"no sound")  # what starts once is started before the first request
        if wanted.log_path:
            wanted.log_path.parent.mkdir(parents=True, exist_ok=True)

    async def __call__(self, request: Any) -> Any:
        """Answer one request, with JSON whatever comes of it."""
        from starlette.responses import JSONResponse

        began, line = time.perf_counter(), {"time": time.time(), "path": request.url.path[:80]}
        try:
            self._let_in(request)
            self._look()
            if request.url.path in routes.OWN:
                return JSONResponse(self._told() if request.url.path == "/health" else self._stats())
            found = await self._answer(request, line)
            status, headers = 200, {}
        except _Refused as e:
            found, status, headers = {"error": str(e)}, e.status, e.headers
        line |= {"status": status, "latency": round(time.perf_counter() - began, 3)}
        self._write(line, found)
        return JSONResponse(found | ({"latency": line["latency"]} if status == 200 else {}), status, headers)

    def _let_in(self, request: Any) -> None:
        """A page of another site may send requests from a browser here, or come under a name of its own (DNS rebinding)."""
        if self._token:
            shown = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(shown.encode(), self._token.encode()):
                raise _Refused(401, "A token is asked for: Authorization: Bearer TOKEN", **{"WWW-Authenticate": "Bearer"})
            return
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not _this_machine(urlsplit(f"//{host}").hostname) or (origin is not None and urlsplit(origin).netloc != host):
            raise _Refused(403, "Requests of other hosts and origins are not answered.")

    async def _answer(self, request: Any, line: dict[str, Any]) -> dict[str, Any]:
        route = self._routes.get(request.url.path)
        if route is None:
            raise _Refused(404, f"Nothing is here; recordings go to {', '.join(self._routes)}.")
        if request.method != "POST":
            raise _Refused(405, "A recording is sent by POST.", Allow="POST")
        key = (request.headers.get("x-key") or request.query_params.get("key") or secrets.token_hex(8))[:KEY]
        name = route.answers(key)
        what = f"{route.language} {name}"
        line |= {"model": name, "version": self._versions[what]}
        if self._waiting[what] >= self._wanted.batch.waiting:
            self._counts[what]["refused"] += 1
            problem = f"Too many requests wait: {self._waiting[what]} of {self._wanted.batch.waiting}."
            raise _Refused(429, problem, **{"Retry-After": "1"})
        self._waiting[what] += 1
        began = time.perf_counter()
        try:
            wave_N = await self._decoded(await self._body(request))
            line["seconds"] = round(len(wave_N) / SAMPLE_RATE, 3)
            found = await self._heard(what, wave_N)
        except _Refused as e:
            self._counts[what]["unusable" if e.status < 500 else "failed"] += 1
            raise
        finally:
            self._waiting[what] -= 1
        self._counts[what]["answered"] += 1
        self._counts[what]["milliseconds of audio"] += len(wave_N) * 1000 // SAMPLE_RATE
        self._latencies[what].append(time.perf_counter() - began)
        return found | {"model": name, "version": self._versions[what], "seconds": line["seconds"]}

    async def _body(self, request: Any) -> bytes:
        most, data, length = uploads.LARGEST, bytearray(), 0
        try:
            async with asyncio.timeout(BODY):
                async for chunk in request.stream():
                    length += len(chunk)
                    if length <= most:
                        data += chunk
                    elif length > HEARD_OUT * most:
                        break
        except TimeoutError:
            raise _Refused(408, f"The recording did not come within {BODY:.0f} s.") from None
        if length > most:
            raise _Refused(413, f"The recording is too large: at most {most / 2**20:.0f} MB.")
        if not data:
            raise _Refused(422, "There is no recording in the request: curl --data-binary @FILE")
        return bytes(data)

    async def _decoded(self, data: bytes) -> Any:
        try:
            return await asyncio.to_thread(uploads.decoded, data, "the recording")
        except InputError as e:
            raise _Refused(422, str(e)) from None

    async def _heard(self, what: str, wave_N: Any) -> dict[str, Any]:
        import ray

        for again in (True, False):
            try:
                async with asyncio.timeout(self._wanted.timeout):
                    found: dict[str, Any] = await self._models[what].hear.remote(wave_N)
            except TimeoutError:
                raise _Refused(504, f"The recording was not heard within {self._wanted.timeout:.0f} s.") from None
            except ray.exceptions.RayError as e:  # its process died; Ray starts another
                if again:
                    continue
                raise _Refused(503, f"The model does not answer: {type(e).__name__}.", **{"Retry-After": "10"}) from None
            if "error" in found:
                raise _Refused(500, found["error"])
            return found
        raise AssertionError("one of both returns or raises")

    # -- what is known of it --------------------------------------------------------------------------

    def _look(self) -> None:
        """Take the file's weights where it has changed and its models are the same; a file that cannot be used changes nothing."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        if (stamp := self._stamp()) == self._seen:
            return
        self._seen = stamp
        with suppress(InputError):
            new = {route.path: route for route in routes.load(self._path).routes}
            same = partial(map, lambda r: (r.path, r.language, sorted(offer.name for offer in r.models)))
            if sorted(same(new.values())) == sorted(same(self._routes.values())):
                self._routes = new

    def _stamp(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:  # on a machine that does not have it
            return 0

    def _told(self) -> dict[str, Any]:
        return {"status": "ok", "routes": {route.path: self._shares(route) for route in self._routes.values()}}

    def _shares(self, route: Route) -> list[dict[str, Any]]:
        total = sum(offer.weight for offer in route.models)
        versions = self._versions
        return [
            {"model": o.name, "version": versions[f"{route.language} {o.name}"], "share": round(o.weight / total, 6)} for o in route.models
        ]

    def _stats(self) -> dict[str, Any]:
        rows = []
        for what, counts in self._counts.items():
            language, _, name = what.partition(" ")
            row = {"model": name, "version": self._versions[what], "language": language, "waiting": self._waiting[what]}
            row |= {kind: counts[kind] for kind in ("answered", "unusable", "refused", "failed")}
            row["seconds"] = counts["milliseconds of audio"] / 1000
            if self._latencies[what]:
                p50, p95 = np.quantile(self._latencies[what], [0.5, 0.95])
                row |= {"latency_p50": round(float(p50), 3), "latency_p95": round(float(p95), 3)}
            rows.append(row)
        return {"since": self._since, "models": rows}

    def _write(self, line: dict[str, Any], found: dict[str, Any]) -> None:
        if self._wanted.log_path is None:
            return
        if line["status"] == 200:
            line["words"] = len(found["words"])
            if self._wanted.text:
                line["text"] = found["text"]
        with suppress(OSError), self._wanted.log_path.open("a", encoding="utf-8") as f:  # a full disk is no reason not to answer
            f.write(json.dumps(line, ensure_ascii=False) + "\n")


def _this_machine(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
