"""Requests over HTTP, with models that stand in: what is answered, refused, written down."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
from starlette.requests import Request
from starlette.testclient import TestClient
from test_uploads import flac

from speechlab import front, routes, uploads
from speechlab.units import SAMPLE_RATE

TONE = flac((0.1 * np.sin(np.arange(SAMPLE_RATE) / 7)).astype(np.float32))


class Stand:
    """In the place of a handle: answers with its name, or raises what it is told to."""

    def __init__(self, name):
        self.name, self.raises, self.asked, self.hear = name, [], 0, self

    async def remote(self, wave_N):
        self.asked += 1
        if self.raises:
            fault = self.raises.pop(0)
            if isinstance(fault, Exception):
                raise fault
            await asyncio.sleep(fault)
        return {"text": f"heard by {self.name}", "words": [{"text": "heard"}], "ended": True}


class Served:
    """A front in this process, and what stands behind it."""

    def __init__(self, folder: Path, *more: str, a: int = 1, b: int = 1, token: str = "", base: str = "http://127.0.0.1:8000") -> None:
        self.path, self.log = folder / "serve.yaml", folder / "log.jsonl"
        self.write(a, b, *more)
        self.models = {f"en {name}": Stand(name) for name in ("a", "b")}
        versions = {"en a": "models:/a/1", "en b": "models:/b/2"}
        made = front.Front(routes.load(self.path), self.path, token, versions, self.models)

        async def app(scope, receive, send):
            await (await made(Request(scope, receive)))(scope, receive, send)

        self.client = TestClient(app, base_url=base)

    def write(self, a: float, b: float, *more: str) -> None:
        names = f"{{name: a, weight: {a}}}, {{name: b, weight: {b}}}"
        self.path.write_text("\n".join([f"routes: [{{models: [{names}]}}]", f"log: {self.log}", *more]))

    def post(self, data: bytes = TONE, key: str = "x", **how):
        return self.client.post("/transcribe", content=data, headers={"X-Key": key, **how.pop("headers", {})}, **how)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def test_a_request_is_answered_and_written_down_without_what_was_said(tmp_path):
    served = Served(tmp_path)
    answer = served.post()
    assert answer.status_code == 200
    found = answer.json()
    assert found["text"] == f"heard by {found['model']}" and found["seconds"] == 1.0 and found["latency"] > 0
    assert found["version"] == {"a": "models:/a/1", "b": "models:/b/2"}[found["model"]]
    assert {served.post().json()["model"] for _ in range(3)} == {found["model"]}, "a key stays"
    assert {served.post(key=str(i)).json()["model"] for i in range(12)} == {"a", "b"}
    assert {served.client.post("/transcribe", content=TONE).json()["model"] for _ in range(16)} == {"a", "b"}, (
        "without a key each is a draw"
    )
    by_query = served.client.post("/transcribe?key=x", content=TONE).json()["model"]
    assert by_query == found["model"]
    (line, *_) = served.lines()
    assert line.items() >= {"path": "/transcribe", "model": found["model"], "version": found["version"], "status": 200, "words": 1}.items()
    assert line["seconds"] == 1.0 and "heard" not in served.log.read_text() and "key" not in line
    (tmp_path / "told").mkdir()
    wordy = Served(tmp_path / "told", "text: true")
    wordy.post()
    assert wordy.lines()[0]["text"].startswith("heard by"), "where it is asked for"
    stats = {row["model"]: row for row in served.client.get("/stats").json()["models"]}
    assert sum(row["answered"] for row in stats.values()) == len(served.lines()) == 33
    assert stats["a"]["latency_p95"] >= stats["a"]["latency_p50"] > 0 and stats["a"]["seconds"] == stats["a"]["answered"]
    shares = {row["model"]: row["share"] for row in served.client.get("/health").json()["routes"]["/transcribe"]}
    assert shares == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"content": b"<script>alert(1)</script>"}, 422, "cannot be decoded"),
        ({"content": b""}, 422, "no recording"),
        ({"content": flac(np.zeros(SAMPLE_RATE * 1000, np.int16))}, 422, "(?i)too long|longer"),
        ({"content": b"x" * (uploads.LARGEST + 1)}, 413, "at most 16 MB"),
        ({"content": (b"x" * 2**20 for _ in range(17))}, 413, "at most 16 MB"),  # whose length is not told
        ({"method": "GET"}, 405, "by POST"),
        ({"url": "/other"}, 404, "/transcribe"),
        ({"url": "/../etc/passwd"}, 404, "Nothing is here"),
        ({"headers": {"Host": "evil.example:8000"}}, 403, "other hosts"),
        ({"headers": {"Host": "127.0.0.1.evil.example"}}, 403, "other hosts"),
        ({"headers": {"Origin": "http://evil.example"}}, 403, "other hosts"),
        ({"headers": {"Origin": "null"}}, 403, "other hosts"),
    ],
    ids=[
        "markup",
        "empty",
        "long",
        "large",
        "large, by and by",
        "get",
        "elsewhere",
        "traversal",
        "host",
        "host like ours",
        "origin",
        "no origin",
    ],
)
def test_what_cannot_be_used_is_refused_as_json(tmp_path, asked, status, said):
    served = Served(tmp_path)
    answer = served.client.request(**{"method": "POST", "url": "/transcribe", "content": TONE, **asked})
    assert answer.status_code == status and re.search(said, answer.json()["error"])
    assert served.lines()[0]["status"] == status and sum(model.asked for model in served.models.values()) == 0
    assert served.client.post("/transcribe", content=TONE, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 200


def test_who_has_no_token_is_turned_away(tmp_path):
    served = Served(tmp_path, token="long enough to be one", base="http://lab.example:8000")
    for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "long enough to be on"}, {"Authorization": "Bearer é"}):
        for url in ("/transcribe", "/stats", "/health"):
            headers = {name: value.encode() for name, value in shown.items()}
            assert served.client.post(url, content=TONE, headers=headers).status_code == 401
    assert served.post(headers={"Authorization": "Bearer long enough to be one"}).status_code == 200


def test_a_model_that_fails_hangs_or_is_full(tmp_path):
    served = Served(tmp_path, "timeout: 0.5", "batch: {waiting: 1}", a=1_000_000, b=1)
    dies = ray.exceptions.ActorDiedError()
    model = served.models["en a"]
    model.raises = [dies]
    assert served.post().status_code == 200 and model.asked == 2, "it is asked once more"
    model.raises = [dies, dies]
    answer = served.post()
    assert answer.status_code == 503 and answer.headers["Retry-After"] and "ActorDiedError" in answer.json()["error"]
    model.raises = [5.0]
    assert served.post().status_code == 504
    model.raises = [0.4, 0.4]
    with ThreadPoolExecutor(2) as both:
        answers = sorted(both.map(lambda _: served.post().status_code, range(2)))
    assert answers == [200, 429]
    (row, _) = served.client.get("/stats").json()["models"]
    assert (row["answered"], row["failed"], row["refused"], row["waiting"]) == (2, 2, 1, 0)


def test_weights_change_with_the_file_and_nothing_else_does(tmp_path, monkeypatch):
    monkeypatch.setattr(front, "LOOK", 0.0)
    served = Served(tmp_path)
    keys = [str(i) for i in range(30)]
    before = {key: served.post(key=key).json()["model"] for key in keys}

    def changed(text=None, **weights):
        served.write(**weights) if weights else served.path.write_text(text)
        os.utime(served.path, ns=(time.time_ns(), time.time_ns()))
        return {key: served.post(key=key).json()["model"] for key in keys}

    after = changed(a=50, b=450)
    assert {after[key] for key in keys if after[key] != before[key]} == {"b"}
    assert changed("routes: [{models: [{name: a, weight: 1}") == after, "half a file"
    assert changed("routes: [{models: [{name: c}, {name: b, weight: 5}]}]") == after, "another model wants a start"
    assert changed(a=50, b=50) == before
