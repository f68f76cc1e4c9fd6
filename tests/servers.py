"""Real servers for the tests of backends, each on this machine's loopback, with a password, in a folder of its own.

``POSTGRESQL`` is Debian's, ``S3`` is SeaweedFS, ``MLFLOW`` is MLflow's own server with basic authentication. A server can be killed as a
power cut would, with all its processes, and be started again on what it left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from browser import free_port

USER, PASSWORD = "lab", "a password of the tests"
BIN = Path(sys.executable).parent


class Server:
    """A server of its own: what it is configured by, and its life.

    Attributes:
        settings: Overrides of a config that uses it.
        environment: What a client needs besides.
        secret: The variable of it that holds the password.
    """

    settings: tuple[str, ...] = ()
    secret = ""
    said = ""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="speechlab-"))  # short: PostgreSQL's socket lies in it
        self.port = free_port()
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.prepare()
        self.start()

    def prepare(self) -> None:
        """What is made once, before the first start."""

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it on what there is, and wait until it answers."""
        until = time.monotonic() + 120
        with open(self.folder / "log", "ab") as log:
            while time.monotonic() < until:
                if self._process is None or self._process.poll() is not None:  # what was killed may still hold the port
                    self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder, **self.rights())
                with suppress(OSError):
                    if self.ready():
                        return
                time.sleep(0.3)
        pytest.fail(f"{type(self).__name__} does not start: {self.said} " + (self.folder / "log").read_text()[-2000:])

    def rights(self) -> dict:
        """Arguments of Popen that say as whom it runs, and in which environment."""
        return {}

    def kill(self) -> None:
        """End it, and all that it started, without a word."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=20)
        self._process.wait(20)

    def end(self) -> None:
        """Kill it and take its folder away."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgreSQL(Server):
    """Debian's PostgreSQL; never as root."""

    secret = "PGPASSWORD"

    def prepare(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not found:
            if os.environ.get("CI"):
                pytest.fail("PostgreSQL is missing: CI installs the Debian package postgresql")
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        self.bin = found[-1].parent
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        made = [self.bin / "initdb", "-D", self.folder / "data", "-U", USER, "-A", "scram-sha-256", "--pwfile", self.folder / "password"]
        subprocess.run(made, check=True, capture_output=True, cwd=self.folder, **self.rights())
        self.environment = {"PGPASSWORD": PASSWORD}
        self.settings = (
            f"tracking.uri=postgresql://{USER}@127.0.0.1:{self.port}/postgres",
            f"tracking.artifacts={self.folder / 'artifacts'}",
        )

    def rights(self) -> dict:
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}

    def command(self) -> list[str]:
        where = ["-D", str(self.folder / "data"), "-k", str(self.folder)]
        return [str(self.bin / "postgres"), *where, "-h", "127.0.0.1", "-p", str(self.port)]

    def ready(self) -> bool:
        asked = [self.bin / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", "postgres", "-c", "select 1"]
        return subprocess.run(asked, capture_output=True, env={**os.environ, **self.environment}).returncode == 0


class SeaweedFS(Server):
    """An S3-compatible store; the metrics are in SQLite."""

    secret = "AWS_SECRET_ACCESS_KEY"

    def prepare(self) -> None:
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port.grpc")
        self._ports = {name: free_port() for name in names}
        (self.folder / "data").mkdir()
        key = {"accessKey": USER, "secretKey": PASSWORD}
        identities = [{"name": "lab", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}]
        (self.folder / "keys.json").write_text(json.dumps({"identities": identities}))
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
        }
        self.settings = (f"tracking.uri=sqlite:///{self.folder / 'mlflow.db'}", "tracking.artifacts=s3://speechlab/runs")

    def command(self) -> list[str]:
        ports = [
            f"-{name}={port}" for name, port in {**self._ports, "s3.port": self.port, "s3.port.iceberg": 0, "s3.port.lance": 0}.items()
        ]
        where = [
            "-dir",
            str(self.folder / "data"),
            "-ip",
            "127.0.0.1",
            "-ip.bind",
            "127.0.0.1",
            "-volume.max=100",
            "-master.volumeSizeLimitMB=64",
        ]
        kinds = [
            "-filer",
            "-s3",
            f"-s3.config={self.folder / 'keys.json'}",
            "-s3.iam=false",
            "-master.telemetry=false",
            "-master.peers=none",
        ]
        return [str(BIN / "weed"), "server", *where, *ports, *kinds]

    def rights(self) -> dict:
        """Without a client's keys, which it would take for those of another user."""
        return {"env": {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}}

    def ready(self) -> bool:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        keys = {"aws_access_key_id": USER, "aws_secret_access_key": PASSWORD, "region_name": "us-east-1"}
        quick = Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=10)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self.port}", config=quick, **keys)
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="speechlab")
            client.put_object(Bucket="speechlab", Key="ready", Body=b"yes")  # its volumes come after its port
        except (BotoCoreError, ClientError) as e:
            self.said = str(e)
            return False
        return True


class MLflow(Server):
    """`mlflow server` with basic authentication, which keeps its own files and hands them out."""

    secret = "MLFLOW_TRACKING_PASSWORD"

    def prepare(self) -> None:
        (self.folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{self.folder / 'auth.db'}\nadmin_username = {USER}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        self.environment = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        self.settings = (f"tracking.uri=http://127.0.0.1:{self.port}",)

    def rights(self) -> dict:
        own = {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the tests",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        return {"env": {**os.environ, **own}}

    def command(self) -> list[str]:
        keeps = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--artifacts-destination", str(self.folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--app-name", "basic-auth"]
        return [str(BIN / "mlflow"), "server", *keeps, *where]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except urllib.error.HTTPError:
            return False


KINDS = {"postgresql": PostgreSQL, "s3": SeaweedFS, "basic-auth": MLflow}
