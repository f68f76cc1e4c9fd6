"""Utterances like another: by how they sound to the model that heard them, and by their wording; and those that hold a word.

Notable: the search is exact. ``usearch`` compares a question with every vector (SIMD, half precision): of 100,000 utterances of
1,024 dimensions that takes 10 to 15 ms on two cores, and 0.2 GB of disk that is mapped, not read. A graph (HNSW) over as many takes
one to two minutes to build and answers in under 1 ms, which a click does not need, so there is none (``tests/bench_likeness.py``).
What is kept are plain arrays, read without pickle and only where their SHA-256 is the one noted when they were written; usearch's
own files would have to be trusted.

Wording knows no model: character trigrams of reference and hypothesis, hashed. Sound is the encoder's, less the mean of all
utterances of the evaluation: states of a transformer lie in a narrow cone, and without it any two are alike (Mu & Viswanath, 2018).

Not covered: likeness between evaluations; meaning (``two`` and ``pair`` share no trigram).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm.std import tqdm
from usearch.compiled import MetricKind
from usearch.index import search as nearest

from speechlab import batches, confusions, corpora, decoding, models
from speechlab.errors import InputError, did_you_mean
from speechlab.evaluation import Evaluation, System
from speechlab.runs import write_atomic
from speechlab.text import Normaliser, normaliser

RULES = "1"  # changes when the same utterances would get other vectors
DIMENSIONS = 1024  # of wording: hashing blurs a cosine by about 1 / sqrt(1024) = 0.03, and is a tenth of the trigrams of English
FAINT = 0.1  # cosine of wording, three times that blur, under which it says nothing
GRAM = 3  # characters
SPACES = ("sound", "wording")
HOLDING = ("said, not heard", "heard, not said", "said and heard")  # how an utterance holds a word, errors first

Vectors = npt.NDArray[np.float16]  # (U, D)


@dataclass(frozen=True, eq=False)
class Index:
    """The utterances of an evaluation, to be asked for those like one, and for words.

    Attributes:
        ids: Of the utterances (U), in the evaluation's order.
        references: Normalised (U).
        hypotheses: Normalised (U).
        words: From :func:`speechlab.confusions.words`.
        rules: The normaliser behind them.
        spaces: Vectors (U, D) by ``wording`` and, where the model could be asked, ``sound``.
    """

    ids: tuple[str, ...] = field(repr=False)
    references: tuple[str, ...] = field(repr=False)
    hypotheses: tuple[str, ...] = field(repr=False)
    words: pd.DataFrame = field(repr=False)
    rules: Normaliser
    spaces: dict[str, Vectors] = field(repr=False)

    def like(self, id: str, by: str = "sound", n: int = 10) -> pd.DataFrame:
        """The utterances most like one.

        Args:
            id: Of the utterance.
            by: One of :data:`SPACES`.
            n: How many.

        Returns:
            id and likeness (cosine), the most alike first, the utterance itself left out.

        Raises:
            InputError: if there is no such utterance or space.
        """
        if id not in self.ids:
            raise InputError("The evaluation has no such utterance.", got=id, do=did_you_mean(id, self.ids))
        found = self._nearest(self._space(by)[self.ids.index(id)], by, n + 1)
        return found[found.id != id].head(n).reset_index(drop=True)

    def search(self, text: str, n: int = 10) -> pd.DataFrame:
        """The utterances that hold a word or several in a row, and then those that are worded alike.

        Args:
            text: Words, normalised as the texts are. ``said > heard`` asks for a word that was heard as another; with one side empty
                for errors that hold the other, words missed and added among them.
            n: How many of those that are only worded alike, none of them under :data:`FAINT`; of an error none.

        Returns:
            id; found: one of :data:`HOLDING`, ``misheard so`` or ``worded alike``; likeness (cosine of the wording).

        Raises:
            InputError: if no word is left of the text.
        """
        said, _, heard = (self.rules(part) for part in text.partition(">"))
        if not said and not heard:
            raise InputError("There is nothing to search for.", got=text, expected="a word, several, or said > heard")
        if ">" in text:
            wrong = self.words[self.words.op != "hit"]
            hit = wrong.said.isin([said] if said else wrong.said) & wrong.heard.isin([heard] if heard else wrong.heard)
            return pd.DataFrame({"id": wrong.id[hit].unique(), "found": "misheard so", "likeness": np.nan})
        everything = self._nearest(wording([said]), "wording", len(self.ids))
        likeness = everything.set_index("id").likeness
        kinds = {id: kind for id, *texts in zip(self.ids, self.references, self.hypotheses, strict=True) if (kind := _held(said, *texts))}
        held = pd.DataFrame({"id": list(kinds), "found": list(kinds.values())}, dtype=object)
        held["likeness"] = held.id.map(likeness).astype(float)
        held = held.sort_values("likeness", ascending=False, kind="stable").sort_values("found", key=_order, kind="stable")
        others = everything[~everything.id.isin(held.id) & (everything.likeness >= FAINT)].head(n).assign(found="worded alike")
        return pd.concat([held, others[["id", "found", "likeness"]]], ignore_index=True)

    def _space(self, by: str) -> Vectors:
        if by not in SPACES:
            raise InputError("Unknown kind of likeness.", got=by, expected=" or ".join(SPACES), do=did_you_mean(by, SPACES))
        if by not in self.spaces:
            do = "give the system whose weights made the evaluation"
            raise InputError("How the utterances sound to the model is not known.", got="an index without sound", do=do)
        return self.spaces[by]

    def _nearest(self, vector_D: npt.NDArray[np.floating[Any]], by: str, n: int) -> pd.DataFrame:
        """Utterances and their cosines, the highest first, equal ones by id."""
        found: Any = nearest(self._space(by), np.asarray(vector_D, np.float16), min(n, len(self.ids)), MetricKind.Cos, exact=True)
        table = pd.DataFrame({"id": [self.ids[key] for key in found.keys], "likeness": 1 - found.distances.astype(float)})
        return table.sort_values(["likeness", "id"], ascending=[False, True], ignore_index=True)


def prepare(evaluation: Evaluation, cuts: Sequence[Any], folder: Path, system: System | None = None, *, progress: bool = True) -> Index:
    """The index of an evaluation, made now or in an earlier call.

    Args:
        evaluation: Whose utterances.
        cuts: The clips as they were heard: :attr:`speechlab.conditions.Heard.cuts`.
        folder: That holds the evaluation; vectors are kept in ``likeness`` in it, under the digests of weights, clips and texts.
        system: What made the evaluation; without it there is no sound but what was kept.
        progress: Whether to show a progress bar.

    Raises:
        InputError: if the system has other weights than the evaluation was made with, or as for
            :func:`speechlab.corpora.load_audio`.
    """
    if system is not None and system.sha256 != evaluation.weights_sha256:
        raise InputError(
            "The evaluation was made with other weights.",
            got=f"{system.name}, {system.sha256[:12]}",
            expected=evaluation.weights_sha256[:12] or "hypotheses from elsewhere",
            do="name the system that made it",
        )
    rules = normaliser(evaluation.normaliser.split()[0])
    scores, ids = evaluation.scores(rules.name), list(evaluation.rows.id)
    texts = json.dumps([rules.identity, ids, scores.references, scores.hypotheses])
    made_from = {"rules": RULES, "texts": hashlib.sha256(texts.encode()).hexdigest()}
    heard = {**made_from, "weights": evaluation.weights_sha256, "heard": evaluation.heard_sha256}
    at = folder / "likeness"
    spaces = {}
    if (sounds := _read(at / f"{evaluation.name}.sound", heard, len(ids))) is None and system is not None:
        wanted = set(ids)
        found = listen(system, [cut for cut in cuts if cut.id in wanted], evaluation.how, progress=progress)
        states_UD = np.stack([found[id] for id in ids])
        sounds = _kept(at / f"{evaluation.name}.sound", heard, states_UD - states_UD.mean(0))
    if sounds is not None:
        spaces["sound"] = sounds
    if (worded := _read(at / f"{evaluation.name}.wording", made_from, len(ids))) is None:
        vectors_UD = np.stack([wording(pair) for pair in zip(scores.references, scores.hypotheses, strict=True)])
        worded = _kept(at / f"{evaluation.name}.wording", made_from, vectors_UD)
    spaces["wording"] = worded
    return Index(tuple(ids), scores.references, scores.hypotheses, confusions.words(scores, ids), rules, spaces)


def listen(system: System, cuts: Sequence[Any], how: dict[str, str], *, progress: bool = True) -> dict[str, npt.NDArray[np.float32]]:
    """What clips sound like to a system: ``embed`` of its family.

    Args:
        system: Whose encoder hears.
        cuts: lhotse cuts.
        how: Its precision, as in :attr:`speechlab.evaluation.Evaluation.how`, is used; the device is what there is.
        progress: Whether to show a progress bar.

    Returns:
        By id the mean state, (D,).

    Raises:
        InputError: as for :func:`speechlab.corpora.load_audio`.
    """
    device = decoding.resolve_device("auto", torch.cuda.is_available())
    model = models.load(system.family, system.folder, system.language).to(device).eval()
    found: dict[str, npt.NDArray[np.float32]] = {}
    with tqdm(total=len(cuts), unit="clip", desc=f"listening with {system.name}", disable=not progress) as bar:
        for part in decoding.plan(cuts):
            batch = batches.collate([(cut.id, "", corpora.load_audio(cut)) for cut in part]).to(torch.device(device))
            with decoding.autocast(device, how.get("precision", "fp32")):
                states_BD = model.embed(batch).cpu().numpy()
            found |= dict(zip(batch.ids, states_BD, strict=True))
            bar.update(len(part))
    return found


def wording(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """A vector for texts that belong together: the mean of each one's trigrams, of length 1.

    Every trigram of characters has a place and a sign by its hash (Weinberger et al., 2009), so no vocabulary is kept and a cosine is
    right on average. Counts are damped by a logarithm: a loop of two hundred words does not drown the rest. A text without
    characters is a feature of its own: nothing said and nothing heard are like each other.

    Args:
        texts: Reference and hypothesis, normalised, or one text that is looked for.

    Returns:
        (:data:`DIMENSIONS`,)
    """
    total_D: npt.NDArray[np.float64] = np.zeros(DIMENSIONS)
    for text in texts:
        counts = Counter(f" {text} "[i : i + GRAM] for i in range(len(text))) or Counter([""])
        vector_D: npt.NDArray[np.float64] = np.zeros(DIMENSIONS)
        for gram, count in counts.items():
            place, sign = _place(gram)
            vector_D[place] += sign * (1 + np.log(count))
        total_D += _unit(vector_D)
    return _unit(total_D).astype(np.float32)


@lru_cache(maxsize=2**16)
def _place(gram: str) -> tuple[int, int]:
    number = int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    return number % DIMENSIONS, 1 if number >> 63 else -1


def _held(words: str, reference: str, hypothesis: str) -> str:
    said, heard = (f" {words} " in f" {text} " for text in (reference, hypothesis))
    return HOLDING[2] if said and heard else HOLDING[0] if said else HOLDING[1] if heard else ""


def _order(found: pd.Series[str]) -> pd.Series[int]:
    return found.map(HOLDING.index)


def _unit(vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Vectors, along the last axis, of length 1; those of length 0 stay."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _kept(path: Path, made_from: dict[str, str], vectors_UD: npt.NDArray[np.float32]) -> Vectors:
    """Vectors of length 1, written beside a note of what they were made from and of their own digest."""
    half_UD: Vectors = _unit(vectors_UD).astype(np.float16)
    buffer = io.BytesIO()
    np.save(buffer, half_UD, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path.with_name(path.name + ".npy"), buffer.getvalue())
    note = {**made_from, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    write_atomic(path.with_name(path.name + ".json"), json.dumps(note, indent=1).encode())
    return half_UD


def _read(path: Path, made_from: dict[str, str], utterances: int) -> Vectors | None:
    """What was kept, if it was made from the same and is as it was written."""
    array = path.with_name(path.name + ".npy")
    try:
        note = json.loads(path.with_name(path.name + ".json").read_text("utf-8"))
        with array.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if note != {**made_from, "sha256": sha256}:
            return None
        vectors_UD: Vectors = np.load(array, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # ValueError: no JSON, or no array
        return None
    return vectors_UD if (str(vectors_UD.dtype), vectors_UD.ndim, len(vectors_UD)) == ("float16", 2, utterances) else None
