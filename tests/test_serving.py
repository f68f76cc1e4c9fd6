"""Models under real Ray Serve, with real weights and real speech."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser import free_port
from released import finished
from test_uploads import flac

from speechlab import config, corpora, front, registry, routes, serving, uploads
from speechlab.errors import InputError


def test_a_server_that_cannot_be_is_refused_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(serving.head, "start", lambda *_, **__: pytest.fail("Ray was started"))
    for text, said in (
        ("routes: [{models: [{name: xyz/none}]}]", "xyz"),
        ("routes: [{models: [{name: 'models:/a@b'}]}]\nregistry: sqlite:////nowhere/x.db", "no registry"),
        ("routes: [{models: [{name: tiny.en}]}]\naddress: 0.0.0.0", routes.TOKEN),
    ):
        (tmp_path / "serve.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            serving.run(tmp_path / "serve.yaml")


def ask(url: str, data: bytes | None = None, **headers: str):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


@pytest.mark.slow
def test_a_canary_under_ray_serve(prompts, tiny_en, tmp_path, monkeypatch, root):
    """A champion by name and a registered candidate, split by key; the weights change; what is bad is refused; it ends without a trace."""
    monkeypatch.setattr(config, "reports", lambda: tmp_path / "reports")
    (tmp_path / "reports").mkdir()
    registry.register(finished(tmp_path / "reports", tiny_en), "prompts-en")
    port, path = free_port(), tmp_path / "serve.yaml"

    def write(weight: float) -> None:
        models = f"[{{name: tiny.en, weight: 70}}, {{name: 'models:/prompts-en@candidate', weight: {weight}}}]"
        path.write_text(f"port: {port}\nroutes: [{{models: {models}}}]\n")

    write(30)
    # the registry is beside the runs of the folder that the command is given in
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
    server = subprocess.Popen(
        [sys.executable, "-m", "speechlab", "serve", str(path)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment,
    )  # fmt: skip
    try:
        said: list[str] = []
        for line in server.stdout:  # a busy machine makes Ray say more than that
            said.append(line)
            if line.startswith("GET "):
                break
        assert any(line.startswith(f"POST http://127.0.0.1:{port}/transcribe") for line in said), said
        url = f"http://127.0.0.1:{port}"
        cuts = sorted(prompts.cuts["test"], key=lambda cut: (cut.duration, cut.id))[100:120:5]
        clips = [(re.sub(r"\W+", " ", cut.supervisions[0].text.lower()).strip(), flac(corpora.load_audio(cut))) for cut in cuts]
        told = ask(f"{url}/health")[1]["routes"]["/transcribe"]
        assert [(row["version"], row["share"]) for row in told][1] == ("models:/prompts-en/1", 0.3)
        keys = [f"caller {i}" for i in range(24)]

        def one(i: int):
            said, data = clips[i % len(clips)]
            status, found = ask(f"{url}/transcribe", data, **{"X-Key": keys[i], "Content-Type": "application/octet-stream"})
            assert status == 200, found
            return found, re.sub(r"\W+", " ", found["text"].lower()).strip() == said

        with ThreadPoolExecutor(8) as crowd:
            answers = list(crowd.map(one, range(len(keys))))
        assert sum(right for _, right in answers) >= 18, "as tiny.en hears them alone"
        assert all(0 <= w["begin"] <= w["end"] and 0 < w["confidence"] <= 1 for found, _ in answers for w in found["words"])
        route = routes.load(path).routes[0]
        assert [found["model"] for found, _ in answers] == [route.answers(key) for key in keys]
        write(3000)
        time.sleep(2 * front.LOOK)
        moved = {one(i)[0]["version"] for i in range(6)}
        assert moved == {"models:/prompts-en/1"}
        assert ask(f"{url}/transcribe", b"no sound")[0] == 422 and ask(f"{url}/transcribe", b"x" * (uploads.LARGEST + 1))[0] == 413
        assert ask(f"{url}/transcribe", clips[0][1], Host="evil.example")[0] == 403
        lines = [json.loads(line) for line in (tmp_path / "reports/serving/requests.jsonl").read_text().splitlines()]
        counted = Counter(line["model"] for line in lines if line["status"] == 200)
        assert counted == {row["model"]: row["answered"] for row in ask(f"{url}/stats")[1]["models"]} and sum(counted.values()) == 30
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            rest, _ = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0 and "Traceback" not in "".join(said) + rest
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)
