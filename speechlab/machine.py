"""What this machine and the services beside it are doing: processor, memory, disk, GPUs, Ray and MLflow, as numbers and as a page.

Notable: Ray is known by its processes and a tracker by its file or its port, so a look starts nothing, joins no cluster and loads
neither library. All displays share one look. What hangs (a GPU's driver, a server far away) holds up its own line, not the page.

Not covered: other machines of a cluster, but for whether their heads answer; who uses a GPU.
"""

from __future__ import annotations

import asyncio
import csv
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import panel as pn
import psutil

from speechlab import pool
from speechlab.board import BOARD_CSS
from speechlab.markup import Html, scrolled
from speechlab.shelf import LINKS_CSS
from speechlab.units import Seconds
from speechlab.upkeep import size

PERIOD: Seconds = 2.0
SLOW: Seconds = 10.0  # between two looks at processes and ports
PATIENCE: Seconds = 2.0  # with whatever is asked
GPU = ("name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")
MACHINE_CSS = (
    BOARD_CSS
    + LINKS_CSS
    + """
.part { padding: .45em 0; } .part b { font-weight: 600; }
.bar.full div { background: #d55e00; } .services td { overflow-wrap: anywhere; }
"""
)


@dataclass(frozen=True)
class Reading:
    """Something of the machine that is taken up in part.

    Attributes:
        what: Its name.
        told: In words, with units.
        share: That is taken, 0 to 1; NaN if it is not known.
    """

    what: str
    told: str
    share: float = float("nan")


@dataclass(frozen=True)
class Service:
    """Something that runs, or does not.

    Attributes:
        what: Its name.
        state: ``up``, ``down`` or ``off``: nobody asked for it.
        told: In words.
    """

    what: str
    state: Literal["up", "down", "off"]
    told: str


def readings(root: Path) -> list[Reading]:
    """Processor (over a fifth of a second), memory and GPUs of this machine, and the disk that holds a folder."""
    memory, busy = psutil.virtual_memory(), psutil.cpu_percent(interval=0.2)
    load = f"{busy:.0f} % of {pool.cores()} cores; {psutil.getloadavg()[0]:.1f} processes want one (mean of the last minute)"
    found = [
        Reading("processor", load, busy / 100),
        Reading("memory", f"{size(memory.total - memory.available)} of {size(memory.total)}", 1 - memory.available / memory.total),
    ]
    place = next((p for p in (root, *root.parents) if p.exists()), Path("/"))
    disk = shutil.disk_usage(place)
    found.append(Reading("disk of the runs", f"{size(disk.free)} free of {size(disk.total)}", 1 - disk.free / disk.total))
    return [*found, *gpus()]


def gpus() -> list[Reading]:
    """The GPUs that the driver's own tool tells of; none where there is no such tool."""
    asked = ["nvidia-smi", f"--query-gpu={','.join(GPU)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [gpu(i, row) for i, row in enumerate(csv.reader(told.splitlines(), skipinitialspace=True)) if len(row) == len(GPU)]


def gpu(index: int, row: list[str]) -> Reading:
    """A GPU from a line of the tool's: name, load (%), memory taken and there (MiB), temperature (°C); it may not know some of them."""
    name, load, used, total, warm = row
    try:
        share = float(used) / float(total)
        memory = f"{float(used) / 1024:.1f} of {float(total) / 1024:.1f} GiB"
    except (ValueError, ZeroDivisionError):
        share, memory = float("nan"), "memory not known"
    return Reading(f"GPU {index}", f"{name}: {load} % busy, {memory}, {warm} °C", share)


def services(root: Path, trackers: Iterable[str] = (), heads: Iterable[str] = ()) -> list[Service]:
    """Ray and MLflow, as far as they can be seen without joining them.

    Args:
        root: The folder of runs, beside which MLflow's default database lies.
        trackers: Tracking URIs of runs.
        heads: Addresses of Ray heads of runs.
    """
    found = [ray_here(), database(root / "mlflow.db")]
    found += [tracker(uri) for uri in sorted(set(trackers)) if uri]
    return found + [answers("Ray head", head, head.removeprefix("ray://")) for head in sorted(set(heads)) if head]


def ray_here() -> Service:
    """Ray's processes on this machine: each raylet is a node."""
    nodes = workers = held = 0
    for process in psutil.process_iter(["name", "memory_info"]):
        name = str(process.info["name"] or "")
        if name == "raylet" or name.startswith("ray::"):
            nodes += name == "raylet"
            workers += name != "raylet"
            held += process.info["memory_info"].rss if process.info["memory_info"] else 0
    if not nodes:
        return Service("Ray here", "off", "not running; a training starts it and ends it")
    return Service("Ray here", "up", f"{nodes} node{'' if nodes == 1 else 's'}, {workers} workers, {size(held)} with what they share")


def database(path: Path) -> Service:
    """MLflow's default database: a file, asked without writing."""
    if not path.exists():
        return Service("MLflow", "off", f"no {path.name} yet; the first training makes it")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as known:
            (runs,) = known.execute("SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()
    except sqlite3.Error as e:
        return Service("MLflow", "down", f"{path.name} cannot be read: {e}")
    look = f"mlflow ui --backend-store-uri sqlite:///{path}"
    return Service("MLflow", "up", f"{runs} runs in {path.name}, {size(path.stat().st_size)}; to see them: {look}")


def tracker(uri: str) -> Service:
    """A tracking server or database of a run's own; a password in its URI is not shown."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        return database(Path(parts.path[1:]))
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return answers("MLflow", f"{parts.scheme}://{parts.hostname}:{port}", f"{parts.hostname}:{port}")


def answers(what: str, name: str, place: str) -> Service:
    """Whether somebody listens at a host and port."""
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError, OverflowError) as e:
        return Service(what, "down", f"{name} does not answer ({e})")
    return Service(what, "up", f"{name} answers")


class Machine(pn.viewable.Viewer):  # type: ignore[misc]  # panel has no types
    """The machine, live.

    Args:
        root: The folder of runs.
        trackers: Tracking URIs of runs.
        heads: Addresses of Ray heads of runs.
    """

    def __init__(self, root: str | Path, trackers: Iterable[str] = (), heads: Iterable[str] = (), **params: Any) -> None:
        super().__init__(**params)
        self.root, self.trackers, self.heads = Path(root), list(trackers), list(heads)
        self._lock = threading.Lock()
        self._readings: list[Reading] = []
        self._services: list[Service] = []
        self._read = self._asked = float("-inf")

    def look(self) -> tuple[list[Reading], list[Service]]:
        """What there is; looked at anew where the last look is too old, whoever made it."""
        with self._lock:
            now = time.monotonic()
            if now - self._read >= PERIOD / 2:
                self._readings, self._read = readings(self.root), now
            if now - self._asked >= SLOW:
                self._services, self._asked = services(self.root, self.trackers, self.heads), now
            return self._readings, self._services

    def __panel__(self) -> pn.viewable.Viewable:
        text = pn.widgets.StaticText(value=_loading(), stylesheets=[MACHINE_CSS], sizing_mode="stretch_width", margin=(4, 0))

        async def tick() -> None:
            text.value = str(machine_html(*await asyncio.to_thread(self.look)))

        pn.state.onload(tick)
        pn.state.add_periodic_callback(tick, period=int(1000 * PERIOD))
        return pn.Column(text, sizing_mode="stretch_width", name="machine")

    def static(self) -> pn.Column:
        """As it stands, without updates."""
        text = pn.widgets.StaticText(value=str(machine_html(*self.look())), stylesheets=[MACHINE_CSS], sizing_mode="stretch_width")
        return pn.Column(text, sizing_mode="stretch_width", name="machine")


def machine_html(found: list[Reading], running: list[Service]) -> Html:
    """Readings as bars, services as a table."""
    bars = Html("").join(
        Html('<div class="part"><b>{}</b> {}{}</div>').format(
            r.what,
            r.told,
            Html(
                '<div class="bar {}" role="meter" aria-label="{}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{:.0f}">'
                '<div style="width:{:.1f}%"></div></div>'
            ).format("full" if r.share > 0.9 else "", r.what, 100 * r.share, 100 * r.share)
            if r.share == r.share
            else "",
        )
        for r in found
    )
    none = (
        Html("")
        if any(r.what.startswith("GPU") for r in found)
        else Html('<div class="part"><b>GPU</b> none that nvidia-smi tells of</div>')
    )
    head = Html("").join(Html("<th>{}</th>").format(name) for name in ("service", "state", "what it says"))
    rows = Html("").join(
        Html('<tr><td>{}</td><td><span class="badge {}">{}</span></td><td>{}</td></tr>').format(
            s.what, {"up": "finished", "down": "failed"}.get(s.state, ""), s.state, s.told
        )
        for s in running
    )
    page = Html('<div class="speechlab"><h1>System</h1>{}{}<h2>Services</h2>{}</div>')
    table = Html('<table class="services"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(head, rows)
    return page.format(bars, none, scrolled(table, "services"))


def _loading() -> str:
    return str(Html('<div class="speechlab"><h1>System</h1><p>Looking …</p></div>'))
