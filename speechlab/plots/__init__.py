"""Pure functions from a table to an interactive figure; boards and reports are layouts of them.

A module a subject, :mod:`speechlab.plots.style` for the looks they share; all of them are re-exported here, and so are the
HTML builders of :mod:`speechlab.markup`, so that a notebook needs one import.

Not covered: live updates (:mod:`speechlab.board` streams into these same figures).
"""

from speechlab.markup import Html, alignment_html, definitions_html, player_html, samples_html, table_html
from speechlab.plots.errors import errors_by_length, errors_by_position, phone_confusions, substitutions
from speechlab.plots.fusion import weights
from speechlab.plots.measured import deadlines, latencies, rejection, reliability, wer_by, wer_over, wer_over_snr
from speechlab.plots.pairs import difference, trainings
from speechlab.plots.rates import durations, error_rates, histogram
from speechlab.plots.side import dev_wer, wer_over_cost, wer_over_rtf
from speechlab.plots.sound import MOST_COLUMNS, spectrogram, waveform
from speechlab.plots.style import COLOURS, decimate, extension, grid
from speechlab.plots.training import (
    CURVES,
    curves,
    dimension,
    gradient_norm,
    in_percent,
    learning_rate,
    loss,
    memory,
    speed,
    trials,
    waste,
    word_error_rate,
)  # fmt: skip

__all__ = [
    "COLOURS", "CURVES", "MOST_COLUMNS", "Html", "alignment_html", "curves", "deadlines", "decimate", "definitions_html", "dev_wer",
    "difference", "dimension", "durations", "error_rates", "errors_by_length", "errors_by_position", "extension", "gradient_norm", "grid",
    "histogram", "in_percent", "latencies", "learning_rate", "loss", "memory", "phone_confusions", "player_html", "rejection",
    "reliability", "samples_html", "spectrogram", "speed", "substitutions", "table_html", "trainings", "trials", "waste", "waveform",
    "weights", "wer_by", "wer_over", "wer_over_cost", "wer_over_rtf", "wer_over_snr", "word_error_rate",
]  # fmt: skip
