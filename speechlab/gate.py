"""The gate: may a candidate take a baseline's place? A verdict, a page for people and a JUnit file for machines.

Both hear the same frozen clips, whose hash is on the page and can be demanded; the verdict is the paired interval's
(:mod:`speechlab.comparison`), and that of several conditions is the worst of theirs. What was measured before, of a run also in its
own evaluations, is not measured again.

Not covered: gates on anything but the word error rate; trainings that differ in their seeds alone (``speechlab compare A1,A2 B1,B2``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as xml

import pandas as pd

from speechlab import config as configs
from speechlab import evaluation, results, runs, systems
from speechlab.comparison import MARGIN, Difference, Verdict, compare, need_margin, sides
from speechlab.comparison import judge as judge_difference
from speechlab.config import EvaluationConfig
from speechlab.errors import InputError
from speechlab.evaluation import Evaluation
from speechlab.markup import CSS, LEGEND, PAGE, Html, definitions_html, samples_html, table_html
from speechlab.runs import write_atomic
from speechlab.text import shown

ORDER = ("OK", "INCONCLUSIVE", "REGRESSED")  # from the best to the worst
SIGNS = {"OK": "✓", "INCONCLUSIVE": "?", "REGRESSED": "✗"}
LOSSES = 20  # shown
SHORTEST = 12  # hex digits of a hash
GATE_CSS = (
    CSS
    + """
.verdict { border-left: 6px solid; padding: .3em 1em; margin: 1em 0; }
.verdict b { font-size: 1.25em; }
.verdict.OK { border-color: #0072b2; } .verdict.INCONCLUSIVE { border-color: #e69f00; } .verdict.REGRESSED { border-color: #d55e00; }
.verdict svg { display: block; width: 100%; max-width: 380px; margin-top: .6em; font: 12px system-ui, sans-serif; }
h2 { font: 600 1.15em system-ui, sans-serif; margin: 1.6em 0 .3em; } p { overflow-wrap: anywhere; }
"""
)


@dataclass(frozen=True)
class Judged:
    """One condition.

    Attributes:
        condition: Its name.
        baseline: What is in use.
        candidate: What may take its place.
        difference: Candidate minus baseline.
        verdict: What follows.
        losses: The rows of :func:`speechlab.comparison.sides`, a the baseline and b the candidate.
    """

    condition: str
    baseline: Evaluation = field(repr=False)
    candidate: Evaluation = field(repr=False)
    difference: Difference
    verdict: Verdict
    losses: pd.DataFrame = field(repr=False)


@dataclass(frozen=True)
class Gate:
    """A candidate against a baseline.

    Attributes:
        candidate: As it was named.
        baseline: Likewise.
        heard_sha256: Of what both heard, :func:`heard`.
        judged: By condition.
        settings: Behind the numbers.
        seed: Of the intervals.
    """

    candidate: str
    baseline: str
    heard_sha256: str
    judged: tuple[Judged, ...]
    settings: EvaluationConfig = field(repr=False)
    seed: int = 0

    @property
    def kind(self) -> Literal["OK", "REGRESSED", "INCONCLUSIVE"]:
        """The worst of the conditions' verdicts."""
        return max((j.verdict.kind for j in self.judged), key=ORDER.index)

    @property
    def text(self) -> str:
        """The verdict that decided, in a sentence."""
        decided = next(j for j in self.judged if j.verdict.kind == self.kind)
        return decided.verdict.text if len(self.judged) == 1 else f"{decided.verdict.text} (under {decided.condition})"


def run(
    candidate: str,
    baseline: str,
    config: str | Path = "configs/quickstart.yaml",
    overrides: Sequence[str] = (),
    conditions: Sequence[str] = ("clean",),
    *,
    margin: float = MARGIN,
    frozen: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> Gate:
    """Evaluate both on a config's test clips, judge, and write ``gate.html`` and ``junit.xml``.

    Args:
        candidate: As for :func:`speechlab.systems.measure`.
        baseline: Likewise.
        config: Says on which corpus and how.
        overrides: ``section.key=value`` texts for it.
        conditions: Names.
        margin: Points of WER that the candidate may be worse.
        frozen: :func:`heard` as it was, or its first digits.
        out: Folder of page, JUnit file and, in ``evaluations``, tables; none is ``reports/gate``.
        progress: Whether to show progress bars.

    Raises:
        InputError: as for :func:`speechlab.systems.measure` and :func:`judge`.
    """
    need_margin(margin)  # before anything is decoded
    folder = Path(out) if out else configs.reports() / "gate"
    for name in ("gate.html", "junit.xml"):  # of an earlier gate: no machine is to read them for this one's
        (folder / name).unlink(missing_ok=True)
    for name in (baseline, candidate):
        _reuse(name, folder / "evaluations")
    quick = [*overrides, "evaluation.latency=false"]  # the gate says nothing of speed
    done = systems.measure((baseline, candidate), config, quick, conditions, folder / "evaluations", usual=True, progress=progress)
    by_system: dict[str, list[Evaluation]] = {}
    for e in done.evaluations:
        by_system.setdefault(e.system, []).append(e)
    order = sorted((baseline, candidate), key=lambda name: Path(name).is_file())  # measure puts files last
    found = dict(zip(order, by_system.values(), strict=True))
    settings, seed = done.experiment.evaluation, done.experiment.seed
    made = judge(candidate, found[candidate], baseline, found[baseline], settings, seed, margin=margin, frozen=frozen)
    write_atomic(folder / "gate.html", page(made).encode("utf-8", "replace"))
    write_atomic(folder / "junit.xml", junit(made))
    return made


def judge(
    candidate: str,
    candidates: Sequence[Evaluation],
    baseline: str,
    baselines: Sequence[Evaluation],
    settings: EvaluationConfig,
    seed: int = 0,
    *,
    margin: float = MARGIN,
    frozen: str | None = None,
) -> Gate:
    """The verdict on evaluations that were made.

    Args:
        candidate: What it is called.
        candidates: Its evaluations; of a condition the first counts.
        baseline: What it is called.
        baselines: Its evaluations, under the same conditions.
        settings: Normaliser and resamples are used.
        seed: Of the intervals.
        margin: Points of WER that the candidate may be worse.
        frozen: As for :func:`run`.

    Raises:
        InputError: if the two did not hear the same, or not what is frozen; a clip could not be read; nothing is said under a
            condition; or as for :func:`speechlab.comparison.judge`.
    """
    ours, theirs = ({e.condition: e for e in reversed(each)} for each in (candidates, baselines))
    if set(ours) != set(theirs):
        raise InputError("The two were not heard under the same conditions.", got=f"{', '.join(ours)}", expected=", ".join(theirs))
    order = list(dict.fromkeys(e.condition for e in baselines))
    for name, each in ((baseline, theirs), (candidate, ours)):
        for e in each.values():
            if e.broken:
                got = f"{len(e.broken)} of {name} under {e.condition}, such as {next(iter(e.broken))}"
                raise InputError("Clips of the gate could not be read.", got=got, expected="every clip", do="restore the corpus")
    sums = heard([theirs[c] for c in order])
    if sums != (other := heard([ours[c] for c in order])):
        raise InputError("The two did not hear the same clips.", got=f"{candidate}: {other}", expected=f"{baseline}: {sums}")
    if frozen is not None and (len(frozen) < SHORTEST or not sums.startswith(frozen.lower())):
        raise InputError(
            "The clips are not those of the frozen set.",
            got=sums,
            expected=frozen if len(frozen) >= SHORTEST else f"{frozen}, but at least {SHORTEST} digits",
            do="restore corpus and config; or, if the set was changed on purpose, freeze the new hash",
        )
    judged = []
    for name in order:
        a, b = (each[name].scores(settings.normaliser) for each in (theirs, ours))
        if not a.words:
            raise InputError(
                "Nothing is said under a condition, so it has no word error rate.", got=name, expected="conditions with speech"
            )
        difference = compare(a, b, settings.resamples, seed)
        lost = sides(a, b, list(theirs[name].rows.id))
        judged.append(Judged(name, theirs[name], ours[name], difference, judge_difference(difference, margin), lost))
    return Gate(candidate, baseline, sums, tuple(judged), settings, seed)


def heard(evaluations: Sequence[Evaluation]) -> str:
    """The hash of what was heard: of one condition its own, of several one over theirs, whatever their order."""
    if len(evaluations) == 1:
        return evaluations[0].heard_sha256
    lines = sorted(f"{e.condition} {e.heard_sha256}\n" for e in evaluations)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _reuse(name: str, folder: Path) -> None:
    """Put what a run has measured of itself among the gate's tables, under the name that a gate gives it.

    Whether it still holds for weights, clips and settings is decided where it would be measured.
    """
    place, _, which = name.partition(":")
    try:
        known = runs.find(place)
    except InputError:  # weights, a registered model, a file
        return
    wanted, called = (("pretrained",), f"{known.id}.pretrained") if which == "pretrained" else (("finetuned", "trained"), known.id)
    for e in evaluation.load(known.path / "evaluations"):
        own = replace(e, system=called)
        if e.system in wanted and not (folder / f"{own.name}.json").exists():
            evaluation.save(folder, own)


# --- the page --------------------------------------------------------------------------------------------------


def page(gate: Gate) -> Html:
    """One self-contained HTML page: verdict, what an answer would take, table, intervals and the worst losses."""
    conditions = [_condition(j, len(gate.judged) > 1) for j in gate.judged]
    about = {
        "candidate": gate.candidate,
        "baseline": gate.baseline,
        "margin": f"{gate.judged[0].verdict.margin:g} points of WER",
        "what was heard": gate.heard_sha256,
        "normaliser": gate.judged[0].candidate.normaliser,
        "weights of the candidate": gate.judged[0].candidate.weights_sha256 or "–",
        "weights of the baseline": gate.judged[0].baseline.weights_sha256 or "–",
    }
    return PAGE.format(
        title=f"Gate: {gate.kind}",
        css=Html(GATE_CSS),
        about=f"May {gate.candidate} take the place of {gate.baseline}?",
        legend=Html("").join(_verdict(j, len(gate.judged) > 1) for j in gate.judged),
        body=Html("{}{}<h2>What was compared</h2>{}").format(_rates(gate), Html("").join(conditions), definitions_html(about)),
    )


def _verdict(judged: Judged, named: bool) -> Html:
    v = judged.verdict
    takes = ""
    if v.needed:
        times = v.needed / judged.difference.utterances
        takes = f"An answer would take about {v.needed:,} utterances of this kind, {times:.1f} times as many as were heard, if the "
        takes += "difference stays what it is."
    return Html('<div class="verdict {}"><b>{} {}{}</b><p>{}</p>{}{}</div>').format(
        v.kind,
        SIGNS[v.kind],
        v.kind,
        f" under {judged.condition}" if named else "",
        v.text.partition(": ")[2],
        Html("<p>{}</p>").format(takes) if takes else "",
        _interval(judged),
    )


def _interval(judged: Judged) -> Html:
    """The interval of the difference on a line, with zero and the margin."""
    points, v = judged.difference.points, judged.verdict
    if math.isnan(v.interval.low):
        return Html("")
    ends = (v.interval.low, v.interval.high, 0.0, v.margin)
    low, width = min(ends), (max(ends) - min(ends)) or 1.0

    def x(value: float) -> str:
        return f"{90 + 200 * (value - low) / width:.1f}"

    marks = [(0.0, "", "no difference", "end", -3), (v.margin, "4 3", f"margin {v.margin:g}", "start", 3)]
    mark = Html(
        '<line x1="{0}" x2="{0}" y1="18" y2="50" stroke="currentColor" stroke-dasharray="{1}" opacity=".7"/>'
        '<text x="{0}" dx="{4}" y="12" text-anchor="{3}" fill="currentColor">{2}</text>'
    )
    return Html(
        '<svg viewBox="0 0 380 54" role="img" aria-label="The interval beside zero and the margin">{}'
        '<line x1="{}" x2="{}" y1="34" y2="34" stroke="currentColor" stroke-width="4"/>'
        '<circle cx="{}" cy="34" r="6" fill="currentColor"/></svg>'
        '<p class="faint">candidate minus baseline, points of WER: left is better; right of the dashed line is more than the margin</p>'
    ).format(Html("").join(mark.format(x(at), *rest) for at, *rest in marks), x(v.interval.low), x(v.interval.high), x(points))


def _rates(gate: Gate) -> Html:
    rows = []
    for j in gate.judged:
        pair = results.summary([j.baseline, j.candidate], gate.settings, gate.seed)
        for r, name in zip(pair.to_dict("records"), ("baseline", "candidate"), strict=True):
            about = name if len(gate.judged) == 1 else f"{name}, {j.condition}"
            rates = {"WER %": f"{100 * r['wer']:.2f}", "95 %": f"{100 * r['low']:.2f} to {100 * r['high']:.2f}"}
            rows.append({"": about, **rates, "S / D / I": f"{r['substitutions']} / {r['deletions']} / {r['insertions']}"})
    table = table_html(pd.DataFrame(rows), dict.fromkeys(("WER %", "95 %", "S / D / I"), "{}"))
    said = f"{len(gate.judged[0].candidate.rows):,} clips; intervals over utterances: these speakers."
    return Html('<h2>Word error rates</h2>{}<p class="faint">{}</p>').format(table, said)


def _condition(judged: Judged, named: bool) -> Html:
    lost = judged.losses[judged.losses.change > 0]
    won, same = int((judged.losses.change < 0).sum()), judged.difference.utterances - len(judged.losses)
    tests = results.tests(judged.difference).fillna({"value": "–", "about": ""})
    what = [Html('{}<br><span class="faint">{}</span>').format(r["what"], r["about"]) for r in tests.to_dict("records")]
    table = table_html(tests.assign(what=pd.Series(what, dtype=object))[["what", "value", "p"]], {"value": "{}", "p": "{:.3g}"})
    rows = [
        {"id": f"{r['id']} · errors: {r['errors a']} → {r['errors b']}", "reference": r["reference"], "a": r["a"], "b": r["b"]}
        for r in lost.head(LOSSES).to_dict("records")
    ]
    losses = samples_html(rows, systems={"a": "baseline", "b": "candidate"}, legend=False) if rows else ""
    counts = f"Utterances with more errors than before: {len(lost)}; with fewer: {won}; with as many: {same}."
    return Html("<h2>The difference{0}</h2>{1}<h2>Worst losses{0}</h2><p>{2}{3}</p>{4}{5}").format(
        f" under {judged.condition}" if named else "",
        table,
        counts,
        f" The {LOSSES} worst are shown." if len(lost) > LOSSES else "",
        LEGEND if rows else "",
        losses,
    )


# --- JUnit -----------------------------------------------------------------------------------------------------


def junit(gate: Gate) -> bytes:
    """The gate as JUnit XML: a test a condition, REGRESSED a failure, INCONCLUSIVE skipped with its message.

    XML 1.0 has no control characters at all, not even as references, so they are shown as their code points.
    """
    kinds = [j.verdict.kind for j in gate.judged]
    counts = {"tests": str(len(kinds)), "failures": str(kinds.count("REGRESSED")), "errors": "0"}
    root = xml.Element("testsuites", counts)  # which has no skipped in Jenkins' schema
    suite = xml.SubElement(root, "testsuite", {"name": "speechlab gate", **counts, "skipped": str(kinds.count("INCONCLUSIVE"))})
    about = xml.SubElement(suite, "properties")
    known = {"candidate": gate.candidate, "baseline": gate.baseline, "margin": gate.judged[0].verdict.margin, "heard": gate.heard_sha256}
    for key, value in known.items():
        xml.SubElement(about, "property", {"name": key, "value": _legal(value)})
    for j in gate.judged:
        seconds = f"{float(j.baseline.rows.seconds.sum() + j.candidate.rows.seconds.sum()):.3f}"
        case = xml.SubElement(suite, "testcase", {"classname": "speechlab.gate", "name": f"WER, {j.condition}", "time": seconds})
        if j.verdict.kind == "REGRESSED":
            failure = xml.SubElement(case, "failure", {"message": _legal(j.verdict.text), "type": "REGRESSED"})
            failure.text = _legal("\n\n".join(_told(row) for row in j.losses[j.losses.change > 0].head(LOSSES).to_dict("records")))
        elif j.verdict.kind == "INCONCLUSIVE":
            xml.SubElement(case, "skipped", {"message": _legal(j.verdict.text)})
        xml.SubElement(case, "system-out").text = _legal(j.verdict.text)
    xml.indent(root)
    return bytes(xml.tostring(root, encoding="utf-8", xml_declaration=True))


def _told(row: dict[Any, Any]) -> str:
    texts = {"said": row["reference"], "baseline": row["a"], "candidate": row["b"]}
    return f"{row['id']}: {row['errors a']} to {row['errors b']} errors\n" + "\n".join(f"  {k}: {v}" for k, v in texts.items())


def _legal(text: object) -> str:
    """What XML 1.0 allows (section 2.2, Char): :func:`speechlab.text.shown` leaves two characters besides that it does not."""
    return shown(text).replace("\ufffe", "[U+FFFE]").replace("\uffff", "[U+FFFF]")
