"""What a player is given; the rest of it is seen in test_playground.py, in a browser."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from speechlab import players
from speechlab.passages import Passage, Word
from speechlab.units import SAMPLE_RATE


def test_a_clip_is_given_whole(monkeypatch):
    wave_N = (0.3 * np.sin(np.arange(2 * SAMPLE_RATE) / 5)).astype(np.float32)
    given = players.picture(wave_N)
    assert given["seconds"] == 2.0
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(given["mp3"])))
    assert abs(len(heard) / rate - 2.0) < 0.1 and np.abs(heard).max() > 0.2
    assert base64.b64decode(given["wave"]).startswith(b"<svg") and base64.b64decode(given["mel"]).startswith(b"\x89PNG")
    monkeypatch.setattr(players, "PICTURED", 1.0)
    assert players.picture(wave_N)["mel"] == ""


def test_rows_hold_words_with_their_times():
    passages = [Passage(0.0, 1.0, (Word("a", 0.1, 0.2, 0.9),)), Passage(2.0, 3.0, (Word("b", 2.1, 2.2),))]
    assert players.rows([("one", passages), ("two", [])]) == [["one", [["a", 0.1, 0.2, 0.9], ["b", 2.1, 2.2, None]]], ["two", []]]
    player = players.Player.of(np.ones(1600, np.float32) * 0.1, [("one", passages)])
    assert player.seconds == 0.1 and player.rows[0][0] == "one"
