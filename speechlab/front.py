"""What is asked over HTTP: looks at a request, decodes the upload, chooses the model, writes down what came of it.

``POST PATH`` takes a recording as it is, ``GET /health`` says who answers, ``GET /stats`` how they fare. A request's key, in the header
``X-Key`` or as ``?key=``, decides which model answers; without one each request is a draw of its own.

Notable: weights alone are read anew when the config file changes, so a canary grows without a restart. A request is written down as a line
without sound, key or, unless that is wished, text. Pages of other sites, and names that others have given to this machine, get no answer.

Not covered: TLS, which a proxy in front does; keys of several tenants; parts of a text before all of it is heard.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from speechlab import routes, uploads
from speechlab.errors import InputError
from speechlab.routes import Route, ServeConfig
from speechlab.units import SAMPLE_RATE, Seconds

BODY: Seconds = 60.0  # for an upload to come
LOOK: Seconds = 1.0  # between two looks at the config's weights
KEPT = 1000  # latencies of each model, for /stats
KEY = 256  # characters that count of a key
HEARD_OUT = 4  # times the largest upload is read to its end: who is cut off while sending would not see why


class _Refused(Exception):
    """A request that is answered with another status than 200."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        super().__init__(problem)
        self.status, self.headers = status, headers


class Front:
    """Answers requests.

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
        if not routes.this_machine(urlsplit(f"//{host}").hostname) or (origin is not None and urlsplit(origin).netloc != host):
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
            if _models(new) == _models(self._routes):
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


def _models(known: dict[str, Route]) -> dict[str, tuple[str, list[str]]]:
    return {path: (route.language, sorted(offer.name for offer in route.models)) for path, route in known.items()}
