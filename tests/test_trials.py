"""The board of a sweep, from the runs as they stand."""

from __future__ import annotations

from bs4 import BeautifulSoup
from test_sweeps import SPACE, experiment, fill

from speechlab import plots, sweeps, trials


def test_the_board_of_a_sweep_shows_every_trial_and_no_markup_of_theirs(tmp_path):
    sweep = sweeps.Sweep.create(experiment(), sweeps.space([*SPACE, "corpus.language=choice(en, '<b>x')"]), 4, tmp_path)
    fill(sweep)
    text = str(trials.summary_html(sweep, sweep.table()))
    soup = BeautifulSoup(text, "html.parser")
    assert len(soup.select("tbody tr")) == 4
    assert "30.00 %" in soup.select("tbody tr")[0].text
    assert not soup.find("b", string="x") and "script" not in {t.name for t in soup.find_all()}
    layout = trials.Trials(sweep).static()
    assert len(layout[1]) == 4  # curves, and a figure for each dimension
    assert all(pane.object is not None for pane in layout[1])
    plots.trials(sweep.curves().iloc[:0])  # nothing validated yet
