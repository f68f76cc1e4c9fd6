"""The corpus check: every clip accepted, repaired or set aside, with what was measured on it.

Notable: two halves. :func:`inspect` looks at one clip and nothing else, so it runs on any number of processes;
:class:`Judge` looks at what only the whole corpus can say (duplicates, texts and speakers across splits, outliers of
the speaking rate) and keeps a few bytes a clip. No clip raises: what is wrong with it becomes its finding, and the
findings are as many as the entries. Hard faults set a clip aside; the rest are remarks, and
``corpus.check.set_aside`` names those that set aside too.

Not covered: whether the words are the right ones (:mod:`speechlab.transcripts`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from speechlab import audio, formats, vad
from speechlab.audio import Wave
from speechlab.config import CheckConfig, CorpusConfig
from speechlab.corpora.base import PCM, Entry
from speechlab.errors import InputError
from speechlab.measures import Measures, measure
from speechlab.text import normaliser
from speechlab.units import SAMPLE_RATE, Samples, Seconds

ACCEPTED, REPAIRED, SET_ASIDE = VERDICTS = ("accepted", "repaired", "set aside")
RULES = "1"  # changes when the same clip would be judged otherwise

Part = tuple[Seconds, Seconds, str]  # begin, end, text
Splitter = Callable[[Wave, str, str, list[vad.Span], Seconds], list[Part]]  # wave, text, language, spans, longest part


@dataclass(frozen=True)
class Finding:
    """What became of one entry.

    Attributes:
        id: As in the entry.
        verdict: One of :data:`VERDICTS`.
        why: The reason where it was set aside.
        repairs: What was done to it.
        remarks: What is odd about it, by the names of :data:`speechlab.config.Remark`.
        text: As it will be learnt from.
        speaker: As in the entry.
        language: As in the entry.
        split: As in the entry.
        claimed: Duration that the corpus gives, in seconds.
        container: What the file is, as :class:`speechlab.formats.Probe` names it.
        rate: Of the file, in Hz; 0 if it could not be read.
        channels: Of the file.
        measures: None if the audio could not be read.
        digest: Of the 16 kHz samples that it ends as, before it is split.
        spans: Speech by VAD.
        parts: Where a long clip is cut; empty for a whole one.
    """

    id: str
    verdict: str
    why: str = ""
    repairs: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    text: str = ""
    speaker: str = ""
    language: str = ""
    split: str = ""
    claimed: Seconds | None = None
    container: str = ""
    rate: int = 0
    channels: int = 0
    measures: Measures | None = None
    digest: str = ""
    spans: tuple[vad.Span, ...] = ()
    parts: tuple[Part, ...] = ()

    def row(self) -> dict[str, Any]:
        """Flat and plain, for a line of JSON: NaN becomes null."""
        values = asdict(self)
        values |= values.pop("measures") or {}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}

    @property
    def pieces(self) -> list[tuple[str, Samples, Samples, str]]:
        """Id, first sample, the one after the last, and text of each clip that it becomes: itself, or its parts."""
        assert self.measures is not None, "it was read"
        if not self.parts:
            return [(self.id, 0, round(self.measures.seconds * SAMPLE_RATE), self.text)]
        return [(f"{self.id}#{n}", round(a * SAMPLE_RATE), round(b * SAMPLE_RATE), text) for n, (a, b, text) in enumerate(self.parts, 1)]

    @classmethod
    def crashed(cls, entry: Entry) -> Finding:
        """That of an entry whose audio brought down the process that looked at it."""
        return cls(entry.id, SET_ASIDE, "its audio crashed the decoder", text=entry.text, split=entry.split)

    @classmethod
    def of(cls, row: dict[str, Any]) -> Finding:
        """What :meth:`row` made flat."""
        measured = {f.name: row[f.name] if row[f.name] is not None else math.nan for f in fields(Measures) if f.name in row}
        known = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        several = {name: tuple(known[name]) for name in ("repairs", "remarks")}
        pairs = {name: tuple(map(tuple, known[name])) for name in ("spans", "parts")}
        return cls(**{**known, **several, **pairs, "measures": Measures(**measured) if measured else None})  # type: ignore[arg-type]


def inspect(entry: Entry, config: CorpusConfig, splitter: Splitter | None = None) -> tuple[Finding, Wave | None]:
    """Look at one clip.

    Args:
        entry: From a reader.
        config: Limits are in ``config.check``.
        splitter: Cuts a long clip and its text; None sets long ones aside.

    Returns:
        The finding, and the 16 kHz samples if the clip is not set aside.
    """
    known: dict[str, Any] = {"speaker": entry.speaker, "language": entry.language, "split": entry.split, "claimed": entry.duration}
    text, repairs = clean(entry.text)
    known["text"] = text

    def aside(why: str, **more: Any) -> tuple[Finding, None]:
        return Finding(entry.id, SET_ASIDE, why, repairs=tuple(repairs), **{**known, **more}), None

    if entry.problem:
        return aside(entry.problem)
    if entry.audio is None:
        return aside("there is no recording")
    if not text:
        return aside("the transcript is empty")
    if not any(map(str.isalnum, normaliser("basic")(text))):
        return aside("the transcript has no words")
    try:
        header = formats.probe(entry.audio, entry.format)
        part: dict[str, Any] = {"start": entry.start, "duration": entry.duration} if entry.start is not None else {}
        channel, mended = entry.channel, list[str]()
        if channel is None and header.channels > 1:
            channel, mended = _channel(formats.read(entry.audio, entry.format, **part))
        wave_N = audio.decode(entry.audio, entry.format, channel=channel, **part)
    except InputError as e:
        return aside(_line(e))
    except Exception as e:  # a decoder's own failure is that clip's, not the run's
        return aside(f"unreadable audio: {type(e).__name__}: {e}"[:300])
    known |= {"container": header.format, "rate": header.rate, "channels": header.channels}
    limits = config.check
    if (peak := float(np.abs(wave_N).max())) > 1.0 + 1e-4 and header.subtype in {"FLOAT", "DOUBLE"}:
        wave_N = wave_N / peak
        mended.append(f"scaled down from a peak of {peak:.2f}")
    if abs(dc := float(wave_N.mean(dtype=np.float64))) > limits.dc:
        wave_N = (wave_N - dc).astype(np.float32)
        mended.append(f"a DC offset of {dc:+.3f} taken out")
    repairs += mended
    seconds = len(wave_N) / SAMPLE_RATE
    if seconds < limits.min_seconds:
        return aside(f"too short: {seconds:.3f} s, expected at least {limits.min_seconds:g} s")
    spans = vad.speech(wave_N) if limits.vad else None
    found = measure(wave_N, spans)
    known |= {"measures": found, "spans": tuple(spans or ()), "digest": PCM + audio.pcm_sha256(wave_N)}
    if found.silent:
        return aside("silence: nothing in it can be heard")
    remarks = tuple(remarks_on(text, entry.duration, found, header.rate, limits))
    if bad := [str(r) for r in remarks if r in limits.set_aside]:
        return aside(_reasons(bad, entry, found), remarks=remarks)
    parts: tuple[Part, ...] = ()
    if seconds > config.max_seconds:
        too_long = f"longer than max_seconds {config.max_seconds:g}: {seconds:.2f} s"
        if splitter is None:
            return aside(too_long, remarks=remarks)
        try:
            parts = tuple(splitter(wave_N, text, entry.language, list(known["spans"]), config.max_seconds))
        except InputError as e:
            return aside(f"{too_long}; {_line(e)}", remarks=remarks)
        repairs.append(f"cut at pauses into {len(parts)} parts")
    verdict = REPAIRED if repairs else ACCEPTED
    return Finding(entry.id, verdict, repairs=tuple(repairs), remarks=remarks, parts=parts, **known), wave_N


def clean(text: str) -> tuple[str, list[str]]:
    """A transcript in NFC without what cannot be spoken or seen, and what was done to it.

    Control, format and private characters go (zero-width ones, byte order marks, direction overrides), runs of white
    space become one space. U+200C and U+200D stay: Persian and the Indic scripts spell with them.
    """
    repairs = []
    kept = "".join(c for c in text if c.isspace() or c in "\u200c\u200d" or unicodedata.category(c)[0] != "C")
    if kept != text:
        repairs.append("characters that cannot be seen taken out of the text")
    composed = unicodedata.normalize("NFC", kept)
    if composed != kept:
        repairs.append("text brought to Unicode NFC")
    return " ".join(composed.split()), repairs


def remarks_on(text: str, claimed: Seconds | None, found: Measures, rate: int, limits: CheckConfig) -> Iterator[str]:
    """The remarks that one clip gives cause for, in the order of :data:`speechlab.config.Remark`."""
    if claimed is not None and abs(found.seconds - claimed) > limits.tolerance:
        yield "truncated"
    if found.clipped >= limits.clipped_share:
        yield "clipped"
    if found.level < limits.min_level:
        yield "quiet"
    if found.snr < limits.min_snr:
        yield "noisy"
    if rate >= SAMPLE_RATE and found.bandwidth < limits.min_bandwidth:
        yield "narrow_band"
    if found.speech / found.seconds < limits.min_speech_share:
        yield "little_speech"
    if limits.alphabet is not None and set(text) - set(limits.alphabet):
        yield "characters"
    if ctc_frames(text) > found.seconds * limits.ctc_frames:
        yield "ctc"


def ctc_frames(text: str) -> int:
    """The fewest frames in which CTC can align a text: its characters, and a blank between equal neighbours (Graves et al., 2006)."""
    return len(text) + sum(a == b for a, b in itertools.pairwise(text))


@dataclass
class Judge:
    """What only the whole corpus can say: first shown every finding, then asked about each.

    Args:
        config: The limits.
    """

    config: CorpusConfig
    _shown: int = 0
    _first: dict[bytes, tuple[str, int, bytes]] = field(default_factory=dict)  # digest to where it stands best: split, order, id
    _texts: dict[bytes, set[str]] = field(default_factory=dict)
    _speakers: dict[str, set[str]] = field(default_factory=dict)
    _rates: dict[str, list[float]] = field(default_factory=dict)
    _spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    def show(self, finding: Finding) -> None:
        """Take a finding into account; those set aside do not count."""
        if finding.verdict == SET_ASIDE:
            return
        self._shown += 1
        place = (_rank(finding.split), self._shown, _short(finding.id))
        key = bytes.fromhex(finding.digest.removeprefix(PCM))
        self._first[key] = min(place, self._first.get(key, place))
        self._texts.setdefault(_short(normaliser("basic")(finding.text)), set()).add(finding.split)
        if finding.speaker:
            self._speakers.setdefault(finding.speaker, set()).add(finding.split)
        if (rate := _rate(finding)) is not None:
            self._rates.setdefault(finding.language, []).append(rate)

    def verdict(self, finding: Finding) -> Finding:
        """The finding with what the others say about it."""
        if finding.verdict == SET_ASIDE:
            return finding
        rank, _, id = self._first[bytes.fromhex(finding.digest.removeprefix(PCM))]
        if (rank, id) != (_rank(finding.split), _short(finding.id)):
            return replace(finding, verdict=SET_ASIDE, why="the same samples as another clip, which is kept", parts=())
        remarks = list(finding.remarks)
        nearer = {"train": {"dev", "test"}, "dev": {"test"}}.get(finding.split, set())  # the splits that it would leak into
        if nearer & self._texts[_short(normaliser("basic")(finding.text))]:
            remarks.append("shared_text")
        if len(self._speakers) > 1 and nearer & self._speakers.get(finding.speaker, set()):  # one voice alone is in every split
            remarks.append("shared_speaker")
        if (rate := _rate(finding)) is not None:
            middle, deviation = self._deviation(finding.language)
            if abs(rate - middle) > self.config.check.rate_deviations * deviation:
                remarks.append("speaking_rate")
        finding = replace(finding, remarks=tuple(remarks))
        bad = [str(r) for r in remarks if r in self.config.check.set_aside]
        return replace(finding, verdict=SET_ASIDE, why="remarked: " + ", ".join(bad), parts=()) if bad else finding

    def _deviation(self, language: str) -> tuple[float, float]:
        """Median, and the standard deviation that the median absolute deviation stands for (Iglewicz & Hoaglin, 1993)."""
        if language not in self._spread:
            rates = np.asarray(self._rates[language])
            middle = float(np.median(rates))
            self._spread[language] = middle, max(1.4826 * float(np.median(np.abs(rates - middle))), 0.05)
        return self._spread[language]


def counts(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How many findings of each verdict, why they were set aside, how they were repaired, what was remarked on.

    Returns:
        ``verdict``, ``why``, ``repair`` and ``remark``, each from name to number, the most frequent first. Numbers in
        reasons are left out, so that equal causes count together.
    """
    total: dict[str, dict[str, int]] = {"verdict": dict.fromkeys(VERDICTS, 0), "why": {}, "repair": {}, "remark": {}}
    for row in rows:
        total["verdict"][row["verdict"]] += 1
        for kind, names in (("why", [row["why"]] if row["why"] else []), ("repair", row["repairs"]), ("remark", row["remarks"])):
            for name in names:
                short = name if kind == "remark" else _cause(name)
                total[kind][short] = total[kind].get(short, 0) + 1
    for kind in ("why", "repair", "remark"):
        total[kind] = dict(sorted(total[kind].items(), key=lambda kv: (-kv[1], kv[0])))
    return total


def listed(total: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, str, int]]:
    """The counts of :func:`counts` in the order people read them: kind, name and number.

    Yields:
        Kind is a ``verdict``; the ``repair`` or ``why`` of the verdict before it; or a ``remark``, behind ``in all``.
    """
    for verdict, kind in ((ACCEPTED, ""), (REPAIRED, "repair"), (SET_ASIDE, "why")):
        yield "verdict", verdict, total["verdict"][verdict]
        yield from ((kind, name, count) for name, count in total.get(kind, {}).items())
    yield "verdict", "in all", sum(total["verdict"].values())
    yield from (("remark", f"remarked: {name}", count) for name, count in total["remark"].items())


def _channel(sound: formats.Sound) -> tuple[int | None, list[str]]:
    """None, for the mean of the channels, unless they cancel each other: then the loudest."""
    power_C = (sound.wave_NC.astype(np.float64) ** 2).mean(axis=0)
    # a silent second channel takes 6 dB off the mean; 20 dB can only be opposite phase
    if float((sound.mono().astype(np.float64) ** 2).mean()) >= power_C.max() / 100:
        return None, []
    best = int(power_C.argmax())
    return best, [f"channel {best} taken alone: the channels cancel each other"]


def _reasons(bad: list[str], entry: Entry, found: Measures) -> str:
    if "truncated" in bad:
        return f"another duration than the corpus says: {found.seconds:.3f} s, expected {entry.duration:.3f} s"
    return "remarked: " + ", ".join(bad)


def _line(error: InputError) -> str:
    return " ".join(line.strip() for line in str(error).splitlines())[:300]


def _cause(text: str) -> str:
    """A reason without its particulars: up to the first colon, numbers and names left out."""
    head = text.partition(":")[0]
    return " ".join(word for word in head.split() if not any(map(str.isdigit, word))) or head


def _short(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:12]


def _rank(split: str) -> str:
    """Which split keeps a clip that stands in several: test first, so that nothing tested on is learnt from."""
    return {"test": "0", "dev": "1", "train": "2"}.get(split, "3")


def _rate(finding: Finding) -> float | None:
    """Log of characters per second of speech."""
    if finding.measures is None:
        return None
    heard = finding.measures.speech if finding.measures.speech > 0 else finding.measures.seconds
    return math.log(len(finding.text) / heard)
