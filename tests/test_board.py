"""The board without a browser: what it keeps of the events, and what it refuses."""

from __future__ import annotations

import socket
import time

import pytest
from browser import EVIL_TEXT, make_run, step_event
from test_plots import live_markup

from speechlab import board, plots, text
from speechlab.board import Board, _sound, _View
from speechlab.errors import InputError
from speechlab.history import MOST_POINTS


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "step"},
        {"kind": "step", "step": "<b>", "loss": []},
        {"kind": "step", "step": 3, "loss": None, "time": "x"},
        {"kind": "start", "steps": "many"},
        {"kind": "validation", "wer": None, "samples": None},
        {"kind": "validation", "samples": [{}]},
        {"kind": "failure"},
        {"kind": "message"},
    ],
)
def test_a_board_shows_on_after_a_malformed_event(tmp_path, event):
    run = make_run(tmp_path, steps=3, epochs=1, end=False)
    view = _View(run)
    view.tick()
    run.append(event)
    run.append(step_event(4))
    view.tick()
    assert "4 / " in view._header.value


def test_static_board_holds_every_step_and_the_final_state(tmp_path):
    view = _View(make_run(tmp_path, steps=60))
    view.tick()
    assert len(view._source.data["step"]) == 60
    assert ">finished<" in view._header.value
    assert "60 / 60" in view._header.value
    assert "3.00 %" in view._header.value
    assert view._samples.value.count("<audio") == 4
    assert "set aside" in view._log.value


def test_two_displays_of_one_board_both_see_every_event(tmp_path):
    run = make_run(tmp_path, steps=6, epochs=1, end=False)
    views = [_View(run), _View(run)]
    for step in range(7, 10):
        run.append(step_event(step))
        for view in views:
            view.tick()
    assert [len(v._source.data["step"]) for v in views] == [9, 9]


def test_the_callback_stops_when_all_is_read(tmp_path):
    class Callback:
        stopped = 0

        def stop(self):
            self.stopped += 1

    run = make_run(tmp_path, steps=6, epochs=1, end=False)
    view = _View(run)
    view.tick()
    view._callback = callback = Callback()
    view.tick()
    assert not callback.stopped
    run.append({"kind": "end", "step": 6, "seconds": 6.0, "best": None})
    view.tick()
    view.tick()
    view.tick()
    assert callback.stopped == 1


def test_of_a_long_run_no_more_is_drawn_than_can_be_seen(tmp_path):
    run = make_run(tmp_path, steps=10_000, epochs=10)
    view = _View(run)
    view.tick()
    assert view._source.data["step"][-1] == 10_000
    assert len(view._source.data["step"]) <= MOST_POINTS


def test_a_silent_run_without_a_driver_is_called_interrupted(tmp_path):
    run = make_run(tmp_path, steps=3, epochs=1, end=False)
    view = _View(run)
    view.tick()
    assert ">running<" in view._header.value
    view._history.last["time"] = time.time() - 600
    view.tick()
    assert ">interrupted<" in view._header.value
    assert "no event for 10 min" in view._header.value
    with run.lock():
        view.tick()
        assert ">running<" in view._header.value


@pytest.mark.parametrize("name", ["../config.yaml", "config.yaml", "/etc/passwd", "samples/none.mp3", "samples/../../x.mp3", None, 7, ""])
def test_an_event_cannot_name_a_file_outside_the_samples(tmp_path, name):
    run = make_run(tmp_path, steps=1, epochs=1)
    (tmp_path / "x.mp3").write_bytes(b"secret")
    assert _sound(run, name) is None
    assert _sound(run, "samples/0.mp3")


def test_no_text_of_a_run_becomes_markup(tmp_path, monkeypatch):
    run = make_run(tmp_path, steps=3, epochs=1, evil=EVIL_TEXT, name="<img src=x onerror=window.pwned=1>", end=False)
    run.append({"kind": "failure", "error": EVIL_TEXT})

    def page():
        view = _View(run)
        view.tick()
        return [live_markup(part.value) for part in (view._header, view._samples, view._log)]

    assert page() == [[], [], []]
    monkeypatch.setattr(text, "escape", str)  # negative control: without the one escape all three would carry it
    assert all(page())


def test_a_taken_port_is_an_input_error(tmp_path):
    run = make_run(tmp_path, steps=1, epochs=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"got: .*127.0.0.1:{port}[\s\S]*expected: +a free port[\s\S]*--port {port + 1}"):
            board.serve(run, port=port, threaded=True)


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "example.org", ""])
def test_the_board_is_served_on_loopback_only(tmp_path, address):
    with pytest.raises(InputError, match="a login: speechlab user"):
        board.serve(make_run(tmp_path, steps=1, epochs=1), address=address, threaded=True)


def test_a_port_out_of_range_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="free port"):
        board.serve(make_run(tmp_path, steps=1, epochs=1), port=70_000, threaded=True)


def test_a_path_that_is_no_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        Board(tmp_path)


def test_every_curve_of_plots_is_on_the_board(tmp_path):
    titles = {
        f.title.text for f in _View(make_run(tmp_path, steps=1, epochs=1)).layout.select(lambda m: hasattr(m, "object")) for f in [f.object]
    }
    assert len(titles) == len(plots.CURVES) + 1


@pytest.mark.slow
def test_in_a_notebook_the_board_follows_while_the_kernel_is_free_and_then_stops(tmp_path):
    import nbformat
    from nbformat import v4
    from test_report import KERNEL, code

    from speechlab import report

    run = make_run(tmp_path, steps=5, epochs=1, end=False)
    until = """async def until(text):
    for _ in range(600):
        if text in shown[0].value:
            return True
        await asyncio.sleep(0.05)
"""
    cells = [
        code('run_path: str = ""', "parameters"),
        code("import asyncio, panel as pn\nfrom speechlab import board, plots, runs\nplots.extension()\nrun = runs.Run(run_path)", "setup"),
        code(until),
        code("shown = board.Board(run).panel()\nshown"),
        code("run.append({'kind': 'step', 'step': 6, 'loss': 1.0})\nprint(await until('6 / 5'))"),
        code("run.append({'kind': 'end', 'step': 6})\nprint(await until('finished'))\nawait asyncio.sleep(3)"),
        code("run.append({'kind': 'step', 'step': 7, 'loss': 1.0})\nawait asyncio.sleep(1.5)\nprint('7 / 5' in shown[0].value)"),
    ]
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "n.ipynb")
    done = nbformat.read(report.execute(tmp_path / "n.ipynb", tmp_path / "o.ipynb", {"run_path": run.path}, progress=False), 4)
    assert [cell.outputs[-1].text.strip() for cell in done.cells[-3:]] == ["True", "True", "False"]
