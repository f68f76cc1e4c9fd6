"""What is served, by configuration: routes, the models behind each with their weights, and which of them answers a key.

Notable: a key's model is found by weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): every model draws a number from the
key's hash, weighted, and the least one answers. So a key has the same model on every machine and after every start, the shares are the
weights', and a weight that is raised takes keys from the others and moves none between them.

Not covered: weights that move by themselves; who a key stands for.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from speechlab import config
from speechlab.config import Section, Uri
from speechlab.errors import InputError
from speechlab.units import Seconds

TOKEN = "SPEECHLAB_SERVE_TOKEN"  # noqa: S105 - the variable's name; what it holds is asked for as Authorization: Bearer
SHORTEST = 16  # characters of a token
OWN = ("/health", "/stats")  # paths that are no routes


class Offer(Section):
    """A model behind a route."""

    name: str = Field(min_length=1, description="RUN, models:/name@alias, or weights by name, folder or hub id")
    weight: float = Field(1.0, gt=0, le=1e6, description="its share of the keys, relative to the others'")


class Route(Section):
    """An address and who answers there."""

    path: str = Field("/transcribe", pattern=r"^/[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    language: str = Field("en", description="of the speech, for models that are told")
    models: tuple[Offer, ...] = Field(min_length=1, max_length=16, strict=False)

    @model_validator(mode="after")
    def _each_once(self) -> Route:
        names = [offer.name for offer in self.models]
        if self.path in OWN:
            raise ValueError(f"got the path {self.path}, expected another than {' and '.join(OWN)}")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"got {twice} twice, expected each model once; add the weights up")
        return self

    def answers(self, key: str) -> str:
        """The name of the model that answers a key."""
        return min((-math.log(_share(self.path, offer.name, key)) / offer.weight, offer.name) for offer in self.models)[1]


class BatchConfig(Section):
    """How requests of one model are heard together."""

    seconds: Seconds = Field(60.0, gt=0, le=3600, description="of audio in a batch, padding included")
    wait: Seconds = Field(0.03, ge=0, le=1, description="for others, from the first passage of a batch that is not full")
    waiting: int = Field(64, ge=1, le=10_000, description="requests that a model has at hand or waiting; more are refused with status 429")


class ServeConfig(Section):
    """A server of models."""

    routes: tuple[Route, ...] = Field(min_length=1, max_length=64, strict=False)
    address: str = Field("127.0.0.1", description=f"another than this machine's own wants a token in {TOKEN}")
    port: int = Field(8000, ge=1, le=65_535)
    batch: BatchConfig = BatchConfig()
    replicas: int = Field(1, ge=1, le=256, description="processes of each model")
    threads: int | None = Field(None, ge=1, le=256, description="of each process; none shares this machine's cores out")
    gpus: float = Field(0.0, ge=0, le=8, description="of each process; a part of one can be shared")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["", "fp32", "bf16", "fp16"] = Field("", description="none is bf16 where the device multiplies it itself")
    timeout: Annotated[Seconds, Field(gt=0, le=3600)] = 300.0
    registry: Uri = Field(None, description="tracking URI of registered models; none is SQLite beside the runs")
    cluster: str | None = Field(None, description="address of a Ray head; none starts Ray on this machine")
    log: str | None = Field(
        "serving/requests.jsonl", description="a line a request, in the folder of runs or an absolute path; null keeps none"
    )
    text: bool = Field(False, description="whether what was heard stands in the log")

    @model_validator(mode="after")
    def _paths_once(self) -> ServeConfig:
        paths = [route.path for route in self.routes]
        if twice := next((path for path in paths if paths.count(path) > 1), None):
            raise ValueError(f"got the path {twice} twice, expected each once; give one of the routes another")
        return self

    @property
    def log_path(self) -> Path | None:
        """Where the requests are written down, if they are."""
        return config.reports() / self.log if self.log else None

    @property
    def own(self) -> bool:
        """Whether only this machine can ask."""
        return this_machine(self.address)


def load(path: str | Path) -> ServeConfig:
    """Read a config file.

    Raises:
        InputError: as for :func:`speechlab.config.load`.
    """
    return config.section(ServeConfig, path)


def this_machine(host: str | None) -> bool:
    """Whether a host, by name or number, is this machine as it speaks to itself."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def token(wanted: ServeConfig) -> str:
    """What a request has to show, from the environment; empty if nothing.

    Raises:
        InputError: if it is too short, or is needed and not there.
    """
    found = os.environ.get(TOKEN, "")
    if found and len(found) < SHORTEST:
        do = f"export {TOKEN}=$(openssl rand -hex 24)"
        raise InputError("The token is too short.", got=f"{len(found)} characters", expected=f"at least {SHORTEST}", do=do)
    if not found and not wanted.own:
        raise InputError(
            "Other machines are served only if they show a token.",
            got=f"address {wanted.address} and no {TOKEN}",
            expected="address 127.0.0.1, or a token in the environment",
            do=f"export {TOKEN}=$(openssl rand -hex 24)",
        )
    return found


def _share(path: str, name: str, key: str) -> float:
    """A number in (0, 1), even over keys and of its own for each model and route."""
    digest = hashlib.sha256("\0".join((path, name, key)).encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6]) + 0.5) / 2**48
