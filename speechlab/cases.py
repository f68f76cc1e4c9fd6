"""The utterances of an evaluation as cases: what was said, what was heard and how it sounds, to look at, play and hand on.

Notable: the words are aligned as in :mod:`speechlab.confusions`, so that a pair of words which a table counts is the pair that is
shown. In an exported folder no name comes from outside: files are called by rank and hash. The page asks for no network
and forbids scripts.

Not covered: clips longer than a minute or two (one picture and one player each); where in a clip an error lies.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from speechlab import audio, calibration, confusions, corpora, evaluation, systems
from speechlab import config as configs
from speechlab.errors import InputError, did_you_mean
from speechlab.evaluation import Evaluation, System
from speechlab.fetch import FetchError
from speechlab.listen import log_mel
from speechlab.markup import CSS, LEGEND, PAGE, Html, alignment_html, player_html
from speechlab.runs import Run, write_atomic
from speechlab.text import normaliser
from speechlab.thumbnails import mel_png, wave_svg
from speechlab.units import Seconds

ORDERS = ("errors", "confidence")
CASES_CSS = (
    CSS
    + """
:host { display: block; width: 100%; }
.speechlab .case { border-top: 1px solid #8884; padding: .5em 0; }
.speechlab .case p { margin: .15em 0; overflow-wrap: anywhere; }
.speechlab .case .heard { font-size: 1.08em; margin: .35em 0; }
.speechlab .case img { display: block; width: 100%; max-width: 480px; }
.speechlab .case .wave { height: 36px; } .speechlab .case .mel { height: 64px; }
.speechlab .case audio { width: 100%; max-width: 480px; }
@media print { .speechlab .case { break-inside: avoid; } }
"""
)


@dataclass(frozen=True)
class Opened:
    """An evaluation with what it was made of.

    Attributes:
        evaluation: The evaluation.
        cuts: The clips as they were heard.
        folder: That holds its tables.
        experiment: The config behind it.
        system: What made it, if its weights are at hand.
        missing: Why they are not.
    """

    evaluation: Evaluation = field(repr=False)
    cuts: list[Any] = field(repr=False)
    folder: Path
    experiment: configs.Experiment = field(repr=False)
    system: System | None
    missing: str = ""


def opened(run: str | Path, name: str = "", config: str | Path = "configs/quickstart.yaml") -> Opened:
    """An evaluation of a run, or of a folder of evaluations, with its clips as they were heard and its system.

    Args:
        run: Id or path of a run, ``latest``, or a folder of evaluations.
        name: ``system--condition--context``; empty is the trained system on clean speech in its usual context.
        config: Says on which corpus, where it is not a run's.

    Raises:
        InputError: if there is no such evaluation, it is of an older version of the lab, or its clips are no longer those that
            were heard.
    """
    table = evaluation.kept(f"{run}:{name}")
    found = next((e for e in evaluation.load(table.parent) if e.name == table.stem), None)
    if found is None:
        raise InputError("The evaluation is of another version of the lab.", got=table.stem, do="evaluate again: speechlab evaluate")
    own = (table.parent.parent / "config.yaml").is_file()
    experiment = Run(table.parent.parent).config if own else configs.load(config)
    corpus = corpora.configured(experiment.corpus)
    heard = evaluation.prepare(found.condition, corpus, experiment)
    if heard.sha256 != found.heard_sha256:
        raise InputError(
            "The clips are not those that this evaluation heard.",
            got=f"{corpus.name}, {heard.sha256[:12]}",
            expected=found.heard_sha256[:12] or "those of hypotheses from elsewhere",
            do="restore the corpus" if own else "name the config that was evaluated with",
        )
    system, missing = None, ""
    try:
        if not found.weights_sha256:
            missing = "somebody's hypotheses"
        elif own:
            available = evaluation.systems(Run(table.parent.parent), corpus)
            system = available.get(found.system)
        else:
            system = systems.resolve(found.system, experiment.corpus.language)
    except (InputError, FetchError) as e:
        missing = str(e).splitlines()[0]
    if system is not None and system.sha256 != found.weights_sha256:
        system, missing = None, f"{found.system} has other weights now"
    return Opened(found, heard.cuts, table.parent, experiment, system, missing or ("" if system else "its weights are not at hand"))


@dataclass(frozen=True)
class Media:
    """A clip as a page carries it.

    Attributes:
        audio: An MP3's bytes.
        wave: An SVG.
        mel: A PNG's bytes.
    """

    audio: bytes = field(repr=False)
    wave: str = field(repr=False)
    mel: bytes = field(repr=False)


class Cases:
    """The utterances of an evaluation.

    Args:
        evaluation: Whose utterances.
        cuts: The clips as they were heard.

    Raises:
        InputError: if a clip of the evaluation is missing among them.
    """

    def __init__(self, evaluation: Evaluation, cuts: Sequence[Any]) -> None:
        self.evaluation = evaluation
        self.rules = normaliser(evaluation.normaliser.split()[0])
        self.scores = evaluation.scores(self.rules.name)
        self.ids: list[str] = list(evaluation.rows.id)
        self._at = {id: i for i, id in enumerate(self.ids)}
        known = {cut.id: cut for cut in cuts}
        if lost := [id for id in self.ids if id not in known]:
            got, do = f"{len(lost)} without a clip, such as {lost[0]}", "give the clips of the evaluation's condition: cases.opened"
            raise InputError("The clips do not fit the evaluation.", got=got, expected="one for each utterance", do=do)
        self.cuts = [known[id] for id in self.ids]
        self._media = lru_cache(maxsize=128)(self._made)

    @cached_property
    def words(self) -> pd.DataFrame:
        """Every word said or heard: :func:`speechlab.confusions.words`."""
        return confusions.words(self.scores, self.ids)

    @cached_property
    def judged(self) -> calibration.Judged | None:
        """Confidences against truth; None if the system does not say how sure it is."""
        rows = self.evaluation.rows
        if not rows.confidences.map(len).any():
            return None
        return calibration.judged(list(rows.reference), list(rows.hypothesis), list(rows.confidences), self.rules, list(rows.speaker))

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row an utterance: id, speaker, duration (s), words, errors, confidence, reference and hypothesis as written, alignment."""
        rows = self.evaluation.rows
        sure = np.full(len(rows), np.nan) if self.judged is None else self.judged.confidence_U
        about = {"words": self.scores.words_U, "errors": self.scores.errors_U, "confidence": sure}
        return pd.DataFrame({**rows[["id", "speaker", "duration"]], **about, **rows[["reference", "hypothesis", "alignment"]]})

    def hardest(self, n: int = 20, by: str = "errors") -> list[str]:
        """The utterances with most errors, of equally many those with fewer words first; or those that the system was least sure of.

        Args:
            n: How many at most; utterances without an error are none of the first kind.
            by: One of :data:`ORDERS`.

        Raises:
            InputError: if there is no such order, or the system does not say how sure it is.
        """
        if by not in ORDERS:
            raise InputError("Unknown order of utterances.", got=by, expected=" or ".join(ORDERS), do=did_you_mean(by, ORDERS))
        if by == "errors":
            wrong = self.table[self.table.errors > 0]
            return list(wrong.sort_values(["errors", "words", "id"], ascending=[False, True, True]).id.head(n))
        if self.judged is None:
            raise InputError("The system does not say how sure it is.", got=self.evaluation.name, expected="confidences")
        return list(self.table.sort_values(["confidence", "id"], na_position="first").id.head(n))

    def media(self, id: str) -> Media:
        """What a clip sounds and looks like; the last ones stay in memory.

        Raises:
            InputError: as for :func:`speechlab.corpora.load_audio`.
        """
        return self._media(id)

    def card(self, id: str, note: str = "", media: Html | None = None) -> Html:
        """An utterance: pictures, player, the hypothesis aligned with the reference, both as they were written.

        Args:
            id: Of the utterance.
            note: Beside its id.
            media: Pictures and player, where they are not to be in the page itself.
        """
        row = self.table.iloc[self._at[id]]
        about = [
            row.speaker,
            f"{row.duration:.2f} s",
            f"{row.errors} {_many(row.errors, 'error')} in {row.words} {_many(row.words, 'word')}",
        ]
        about += [f"confidence {row.confidence:.2f}"] if row.confidence == row.confidence else []
        said, heard = self.scores.references[self._at[id]], self.scores.hypotheses[self._at[id]]
        aligned = [alignment_html(said, heard) for _, said, heard in confusions.align(said.split(), heard.split())]
        return Html(
            '<div class="case"><p><b>{}</b>{} <span class="faint">{}</span></p>{}<p class="heard">{}</p>'
            '<p class="faint">said: {}</p><p class="faint">heard: {}</p></div>'
        ).format(
            id,
            f" · {note}" if note else "",
            " · ".join(filter(None, about)),
            media if media is not None else self._inline(id),
            Html(" ").join(aligned) or Html('<span class="faint">(nothing said, nothing heard)</span>'),
            row.reference or "–",
            row.hypothesis or "–",
        )

    def html(self, ids: Sequence[str], heard: Seconds = 120.0) -> Html:
        """Utterances one below the other, in the order given, with pictures and players as long as the page stays small.

        Args:
            ids: Of the utterances.
            heard: Seconds of audio that the page may carry; those behind are shown without.
        """
        total = np.cumsum([self.table.duration.iloc[self._at[id]] for id in ids])
        cards = [self.card(id, media=None if seconds <= heard else Html("")) for id, seconds in zip(ids, total, strict=True)]
        silent = int((total > heard).sum())
        note = Html('<p class="faint">{} without a player, to keep the page small.</p>').format(silent) if silent else ""
        body = Html("").join(cards) or Html('<p class="faint">No utterance.</p>')
        return Html("<style>{}</style>{}{}{}").format(Html(CASES_CSS), LEGEND if ids else "", body, note)

    def export(self, folder: Path, n: int = 20, by: str = "errors") -> Path:
        """The hardest utterances as a folder: a page, a table, and a FLAC file with two pictures for each clip.

        Args:
            folder: Made if it is not there; what else lies in it stays.
            n: How many at most.
            by: One of :data:`ORDERS`.

        Returns:
            The page, ``index.html``. Beside it lie ``clips.jsonl`` and ``clips.csv``: rank, file and the columns of :attr:`table`; in
            the CSV a text that a spreadsheet would take for a formula has an apostrophe before it.

        Raises:
            InputError: as for :meth:`hardest` and :func:`speechlab.corpora.load_audio`, or if the disk is full.
        """
        ids = self.hardest(n, by)
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        cards, files = [], []
        for rank, id in enumerate(ids, 1):
            name = f"clips/{rank:03d}-{hashlib.sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
            wave_N, seen = corpora.load_audio(self.cuts[self._at[id]]), self.media(id)
            flac = io.BytesIO()
            audio.save_flac(flac, wave_N)
            for suffix, data in (("flac", flac.getvalue()), ("svg", seen.wave.encode()), ("png", seen.mel)):
                write_atomic(folder / f"{name}.{suffix}", data)
            player = Html('<audio controls preload="none" aria-label="{}" src="{}.flac"></audio>').format(id, name)
            cards.append(self.card(id, f"no. {rank}", _pictured(id, f"{name}.svg", f"{name}.png", player)))
            files.append(f"{name}.flac")
        chosen = self.table.iloc[[self._at[id] for id in ids]].reset_index(drop=True)
        chosen = pd.concat([pd.DataFrame({"rank": range(1, len(ids) + 1), "file": files}), chosen], axis=1)
        lines = "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in chosen.to_dict("records"))
        write_atomic(folder / "clips.jsonl", lines.encode())
        texts = ["id", "speaker", "reference", "hypothesis", "alignment"]
        write_atomic(folder / "clips.csv", chosen.assign(**{c: chosen[c].map(_inert) for c in texts}).to_csv(index=False).encode())
        e, order = self.evaluation, {"errors": "with most errors", "confidence": "the system was least sure of"}[by]
        page = PAGE.format(
            title=f"{e.label}, {e.condition}: the {len(ids)} utterances {order}",
            css=Html(CASES_CSS),
            about=str(self.scores),
            body=Html("").join(cards),
            legend=LEGEND,
        )
        write_atomic(folder / "index.html", page.encode("utf-8", "replace"))
        return folder / "index.html"

    def _made(self, id: str) -> Media:
        wave_N = corpora.load_audio(self.cuts[self._at[id]])
        return Media(audio.encode_mp3(wave_N), wave_svg(wave_N), mel_png(log_mel(wave_N)))

    def _inline(self, id: str) -> Html:
        try:
            media = self.media(id)
        except InputError as e:
            return Html('<p class="faint">{}</p>').format(e)
        kinds = (("image/svg+xml", media.wave.encode()), ("image/png", media.mel))
        wave, mel = (f"data:{kind};base64,{base64.b64encode(data).decode()}" for kind, data in kinds)
        return _pictured(id, wave, mel, player_html(media.audio, id))


def _pictured(id: str, wave: str, mel: str, player: Html) -> Html:
    pictures = Html('<img class="wave" alt="waveform of {0}" src="{1}"><img class="mel" alt="log-mel spectrogram of {0}" src="{2}">{3}')
    return pictures.format(id, wave, mel, player)


def _many(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _plain(row: dict[Any, Any]) -> dict[str, Any]:
    """Values that JSON has; what is missing is null."""
    return {str(k): None if v != v else v for k, v in row.items()}


def _inert(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
