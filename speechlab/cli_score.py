"""The command line's part for numbers: evaluate models, score anybody's output, compare two systems, and say so in exit statuses.

``compare`` ends with 0 for OK, 1 for REGRESSED, 3 for INCONCLUSIVE; 2 is for input that cannot be used, here as everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from speechlab.cli_corpus import QUICKSTART, ConfigOption, out
from speechlab.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from speechlab.comparison import Difference, Families
    from speechlab.pairs import Pair
    from speechlab.scoring import Scores
    from speechlab.statistics import By, Interval
    from speechlab.utterances import Joined

app = typer.Typer()
EXITS = {"OK": 0, "REGRESSED": 1, "INCONCLUSIVE": 3}

SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value in place of the file's; repeatable")]
NormaliserOption = Annotated[str, typer.Option(help="english, basic (all other languages) or raw")]
MissingOption = Annotated[str, typer.Option(help="references without a hypothesis: refuse, deleted (all words missed) or leave")]
ExtraOption = Annotated[str, typer.Option(help="hypotheses without a reference: refuse or leave")]


@app.command()
def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="a run (before and after), or several of: RUN, RUN:pretrained, models:/name@alias, weights, a file of hypotheses"
        ),
    ] = None,
    config: ConfigOption = QUICKSTART,
    set_: SetOption = None,
    conditions: Annotated[str, typer.Option(help="such as clean,white-5db,gsm; standard is all of the usual ones")] = "",
    to: Annotated[Path | None, typer.Option("--out", help="folder of the tables, for models that are no run")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="processes that decode, for large sets; none is evaluation.workers")] = None,
    missing: MissingOption = "refuse",
    extra: ExtraOption = "refuse",
) -> None:
    """Decode test clips under conditions and count errors, with intervals; what was measured before is not measured again.

    The config says on which corpus and how; a run alone is evaluated on its own.
    """
    from speechlab import results, runs, systems, tracking

    asked = [name.strip() for name in conditions.split(",") if name.strip()]
    done = systems.measure(names or ["latest"], config, set_ or (), asked, to, workers=workers, missing=missing, extra=extra)
    table = results.summary(done.evaluations, done.experiment.evaluation, done.experiment.seed)
    for system, rows in table.groupby("system", sort=False):
        out.print(_rates(str(system), rows))
    for e in done.evaluations:
        if e.broken:
            first = next(iter(e.broken.items()))
            out.print(f"{e.name}: {len(e.broken)} clips could not be read, such as {first[0]}: {first[1].splitlines()[0]}", markup=False)
    clips = ", ".join(str(n) for n in sorted(set(table.clips)))
    out.print(f"{clips} clips; intervals over utterances (these speakers); raw: WER with case and punctuation; ms: p50, p95 of clips alone")
    out.print(f"normaliser: {done.evaluations[0].normaliser}", markup=False)
    out.print(str(done.folder), markup=False)
    if (done.folder.parent / "config.yaml").is_file():
        with tracking.Follower(runs.Run(done.folder.parent)):
            pass


@app.command()
def score(
    reference: Annotated[Path, typer.Argument(help="what was said: .trn, .csv, .tsv, .jsonl or .parquet")],
    hypothesis: Annotated[Path, typer.Argument(help="what was recognised, likewise")],
    normaliser: NormaliserOption = "english",
    missing: MissingOption = "refuse",
    extra: ExtraOption = "refuse",
    to: Annotated[Path | None, typer.Option("--out", help="folder for utterances.parquet, scores.json, ref.trn and hyp.trn")] = None,
) -> None:
    """Word and character errors of any system's output, with intervals."""
    from speechlab import utterances

    joined = utterances.join(utterances.read(reference, "reference"), utterances.read(hypothesis, "hypothesis"), missing, extra)
    normal, raw = _scores(joined, normaliser), _scores(joined, "raw")
    _report_joined(joined)
    table = Table("", normal.normaliser.split()[0], "raw")
    kinds = (normal, raw)
    for name in ("wer", "cer", "mer", "wil"):
        table.add_row(f"{name.upper()} %", *(f"{100 * getattr(s, name):.2f}" for s in kinds))
    intervals = [[s.interval(by=by) for s in kinds] for by in _units(normal)]
    for spans in intervals:
        table.add_row(f"95 % of the WER, {spans[0].scope}", *(_span(i, 100) for i in spans))
    table.add_row("substituted / deleted / inserted", *(f"{s.substitutions} / {s.deletions} / {s.insertions}" for s in kinds))
    table.add_row("reference words", *(f"{s.words:,}" for s in kinds))
    out.print(table)
    for interval, _ in intervals:
        if interval.warning:
            out.print(interval.warning, markup=False)
    out.print(f"{len(normal)} utterances; normaliser: {normal.normaliser}", markup=False)
    if to is not None:
        _keep(to, joined, normal, [interval for interval, _ in intervals])
        out.print(str(to), markup=False)


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            help="the system in use: a run, RUN:system--condition--context, models:/name@alias, or a file; with commas several trainings"
        ),
    ],
    b: Annotated[str, typer.Argument(help="the new one, likewise")],
    reference: Annotated[Path | None, typer.Option(help="what was said, for files that do not hold it")] = None,
    margin: Annotated[float, typer.Option(help="points of WER that the new system may be worse")] = 0.5,
    by: Annotated[
        str | None, typer.Option(help="speaker (new speakers) or utterance (these); none takes speakers where there are two")
    ] = None,
    by_stratum: Annotated[Path | None, typer.Option("--strata", help="table with id and stratum, to compare in each too")] = None,
    normaliser: NormaliserOption = "english",
    missing: MissingOption = "refuse",
    extra: ExtraOption = "refuse",
) -> None:
    """Is the new system worse? OK (exit 0), REGRESSED (1) or INCONCLUSIVE (3), from the interval of the paired difference."""
    from speechlab import comparison, pairs, utterances

    if by not in (None, "speaker", "utterance"):
        raise InputError("Unknown unit to resample.", got=by, expected="speaker or utterance")
    both = pairs.pair(a, b, reference, normaliser, missing, extra)
    for each in both.joined:
        _report_joined(each)
    difference = both.difference()
    _report_difference(both, difference)
    if by_stratum is not None:
        labels = utterances.read(by_stratum, "stratum")
        lost = [key for key in both.ids if key not in labels.texts]
        if lost:
            raise InputError(f"{len(lost)} utterances have no stratum.", got=utterances.some(lost), expected=f"each in {by_stratum}")
        _report_strata(comparison.strata(both.a[0], both.b[0], [labels.texts[key] for key in both.ids]))
    verdict = comparison.judge(difference, margin, by)  # type: ignore[arg-type]
    out.print(verdict.text, markup=False)
    raise SystemExit(EXITS[verdict.kind])


# -- where texts come from ----------------------------------------------------------------------


def _scores(joined: Joined, name: str) -> Scores:
    from speechlab import scoring, text

    return scoring.score(joined.references, joined.hypotheses, text.normaliser(name), joined.speakers)


def _keep(folder: Path, joined: Joined, scores: Scores, intervals: list[Interval]) -> None:
    from speechlab import utterances
    from speechlab.runs import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    table = scores.table()
    table.insert(0, "id", list(joined.ids))
    write_atomic(folder / "utterances.parquet", table.to_parquet(index=False))
    for name, texts in (("ref", scores.references), ("hyp", scores.hypotheses)):
        write_atomic(folder / f"{name}.trn", utterances.trn(joined.ids, texts, joined.speakers).encode())
    rates = {name: getattr(scores, name) for name in ("wer", "cer", "mer", "wil", "words", "substitutions", "deletions", "insertions")}
    about = {"normaliser": scores.normaliser, "utterances": len(scores), **rates, "intervals": {i.scope: vars(i) for i in intervals}}
    about |= {"missing": list(joined.missing), "extra": list(joined.extra)}
    write_atomic(folder / "scores.json", (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode())


# -- what is shown ------------------------------------------------------------------------------


def _report_joined(joined: Joined) -> None:
    from speechlab.utterances import some

    if joined.missing:
        out.print(f"{len(joined.missing)} references had no hypothesis: {some(joined.missing)}", markup=False)
    if joined.extra:
        out.print(f"{len(joined.extra)} hypotheses had no reference and were left out: {some(joined.extra)}", markup=False)


def _report_difference(both: Pair, d: Difference | Families) -> None:
    from speechlab.comparison import Difference

    for side, names, scores in (("a", both.names_a, both.a), ("b", both.names_b, both.b)):
        for name, each in zip(names, scores, strict=True):
            out.print(f"{side}: {name}: {each}" if len(scores) > 1 else f"{side}: {each}", markup=False)
    table = Table("b minus a", "", "")
    table.add_row("difference, points", f"{d.points:+.2f}", "")
    spans = (d.interval, d.speaker_interval) if isinstance(d, Difference) else (d.interval, d.speaker_interval, d.trainings)
    for interval in spans:
        table.add_row(f"95 %, {interval.scope}", _span(interval), interval.warning)
    table.add_row(f"sign-flip over {d.p_by}s", f"p = {d.p:.3g}", d.p_warning)
    if isinstance(d, Difference):
        table.add_row(
            "MAPSSWE", f"p = {d.mapsswe.p:.3g}", f"z = {0.0 - d.mapsswe.z:.2f} over {d.mapsswe.segments} segments, taken as independent"
        )
        table.add_row("paired t-test", f"p = {d.p_t:.3g}", "of utterances' rates, taken as independent")
    else:
        table.add_row("Welch's test over trainings", "–" if d.p_trainings != d.p_trainings else f"p = {d.p_trainings:.3g}", "")
    out.print(table)


def _report_strata(rows: pd.DataFrame) -> None:
    table = Table("stratum", "utterances", "words", "WER a %", "WER b %", "points", "95 %, these speakers", "p", "p (Holm)", "")
    for r in rows.to_dict("records"):
        rates = (f"{100 * r['wer_a']:.2f}", f"{100 * r['wer_b']:.2f}", f"{r['points']:+.2f}")
        few = r["low"] != r["low"]
        span = "–" if few else f"{r['low']:+.2f} to {r['high']:+.2f}"
        table.add_row(
            Text(str(r["stratum"])),  # a table takes plain strings for markup
            str(r["utterances"]),
            str(r["words"]),
            *(("–",) * 3 if few else rates),  # no false precision
            span,
            *("–" if few else f"{r[name]:.3g}" for name in ("p", "p_holm")),
            str(r["warning"]),
        )
    out.print(table)


def _units(scores: Scores) -> tuple[By, ...]:
    """What intervals can be over."""
    return ("utterance", "speaker") if scores.speakers else ("utterance",)


def _rates(system: str, rows: pd.DataFrame) -> Table:
    """A system under its conditions; narrow enough for a terminal of 80 columns."""
    heads = ("WER %", "95 %", "S/D/I", "CER %", "raw", "RTFx", "ms")
    shown = Table("", *heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=Text(system), title_justify="left")
    for row in rows.to_dict("records"):
        silent, ends = row["wer"] != row["wer"], f"{100 * row['low']:.2f}–{100 * row['high']:.2f}"
        rates = ["–", f"{row['invented']:.1f} words/min"] if silent else [f"{100 * row['wer']:.2f}", ends]
        shown.add_row(
            " ".join(filter(None, (row["condition"], row["context"]))),
            *rates,
            f"{row['substitutions']}/{row['deletions']}/{row['insertions']}",
            "–" if silent else f"{100 * row['cer']:.2f}",
            "–" if silent else f"{100 * row['wer_raw']:.2f}",
            "–" if row["rtfx"] != row["rtfx"] else f"{row['rtfx']:.1f}",
            "–" if row["p50"] != row["p50"] else f"{1000 * row['p50']:.0f}, {1000 * row['p95']:.0f}",
        )
    return shown


def _span(interval: Interval, scale: float = 1) -> str:
    if interval.low != interval.low:
        return "–"
    sign = "" if scale == 100 else "+"
    return f"{scale * interval.low:{sign}.2f} to {scale * interval.high:{sign}.2f}"
