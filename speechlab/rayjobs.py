"""Ray Jobs: a run sent to a Ray cluster, whose head drives it.

Notable: what is sent is a command, ``speechlab train --resume RUN``, so the folder of runs must lie where all machines of the cluster
see it under the same path, and ``speechlab`` must be installed there. The run's events come as always, by the folder.

Not covered: starting a cluster (``ray start --head``, or KubeRay: ``configs/cluster/rayjob.yaml``); packing code for it.
"""

from __future__ import annotations

import os
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from speechlab import head
from speechlab.errors import InputError
from speechlab.runs import Run
from speechlab.units import Seconds

OVERRIDE = "cluster.address=auto"  # of a run that is sent: its driver is in the cluster that it asks for workers
OVER = ("STOPPED", "SUCCEEDED", "FAILED")
KNOCK: Seconds = 5.0  # until nobody answers

Answer = TypeVar("Answer")

_environment = threading.Lock()


def submit(run: Run, address: str, by: str) -> str:
    """Send a run.

    Args:
        run: In a folder that the cluster sees; its config has :data:`OVERRIDE`.
        address: Of the cluster's dashboard, such as ``http://127.0.0.1:8265``.
        by: Who asks.

    Returns:
        The job's name in the cluster.

    Raises:
        InputError: if the cluster does not take it.
    """
    command = f"speechlab train --no-progress --resume {shlex.quote(str(run.path))}"
    return _asked(address, lambda client: str(client.submit_job(entrypoint=command, metadata={"run": run.id, "by": by})))


def state(address: str, submission: str) -> str:
    """Where a job stands: ``PENDING``, ``RUNNING``, or one of :data:`OVER`.

    Raises:
        InputError: if the cluster does not say.
    """
    return _asked(address, lambda client: str(client.get_job_status(submission).value))


def stop(address: str, submission: str) -> None:
    """End a job: its driver is asked, which saves a checkpoint, and after some seconds killed.

    Raises:
        InputError: if the cluster cannot be asked.
    """
    _asked(address, lambda client: client.stop_job(submission))


def log(address: str, submission: str) -> str:
    """The end of what its driver said.

    Raises:
        InputError: if the cluster does not say.
    """
    return _asked(address, lambda client: str(client.get_job_logs(submission)))[-2000:]


def _asked(address: str, ask: Callable[[Any], Answer]) -> Answer:
    place = urlsplit(address)
    try:
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError("no address of the web")
        # Ray's client sets no limit of time on its requests
        socket.create_connection((place.hostname, place.port or (443 if place.scheme == "https" else 80)), timeout=KNOCK).close()
        with _only(address):
            from ray.job_submission import JobSubmissionClient

            client = JobSubmissionClient(address)
        return ask(client)
    except Exception as e:
        raise InputError(
            "The Ray cluster does not take the job.",
            got=f"{address}: {type(e).__name__}: {(str(e).strip().splitlines() or [''])[0][:300]}",
            expected="the dashboard of a running cluster, such as http://127.0.0.1:8265, with the same RAY_AUTH_MODE and token as here",
            do="ray start --head there, and see that the address is reached from here",
        ) from None


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Ray's client goes by RAY_ADDRESS, whatever it is given; of its variables this one is the first that counts."""
    name = "RAY_API_SERVER_ADDRESS"
    with _environment:
        head.environment()
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        before = os.environ.get(name)
        os.environ[name] = address
        try:
            yield
        finally:
            os.environ.pop(name, None)
            if before is not None:
                os.environ[name] = before
