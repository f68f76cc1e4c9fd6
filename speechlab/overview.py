"""The page that links and compares what was reported: ``reports/index.html``, one file that opens from the disk and runs nothing.

Notable: word error rates stand side by side only where the same clips were scored with the same normaliser; each such test set has a
table of its own, with a forest plot in it and paired differences below it. Links are to files that lie in the folder, wherever links in
it lead.

Not covered: tests of significance (``speechlab compare``); sorting, which would take a script.
"""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from speechlab import config as configs
from speechlab.comparison import MARGIN
from speechlab.ledger import ALL_PAIRS, Known, Rate, difference, known, pairs
from speechlab.markup import CSS, PAGE, Html, scrolled, time_html
from speechlab.runs import write_atomic
from speechlab.units import Seconds, clock

NAME = "index.html"
VERDICTS = f"OK: worse by more than {MARGIN:g} points is ruled out; REGRESSED: that is sure; INCONCLUSIVE: neither."
WIDTH, ROW = 260, 34  # of a row's part of the forest plot, in its own units
INDEX_CSS = (
    CSS
    + """
main.speechlab { max-width: 1240px; overflow: visible; }
h2 { font: 600 1.15em system-ui, sans-serif; margin: 1.8em 0 .3em; } p, li { overflow-wrap: anywhere; }
.speechlab .runs { width: 100%; } .runs td:first-child { min-width: 16em; } .runs td { min-width: 7em; }
.runs td, .pairs td:nth-child(-n + 2) { overflow-wrap: anywhere; } .pairs td:nth-child(n + 3) { white-space: nowrap; }
.pairs td { min-width: 6em; } .runs svg { display: block; width: 260px; }
.runs .change { white-space: nowrap; } a { text-underline-offset: 2px; } a:focus-visible { outline: 2px solid; outline-offset: 2px; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
@media (max-width: 860px) {
  .runs thead { display: none; } .speechlab .runs, .speechlab .runs :is(tbody, tr, td) { display: block; border: 0; padding: .12em 0; }
  .speechlab .runs tr { border-bottom: 1px solid #8886; padding: .6em 0; }
  .runs td[data-label]::before { content: attr(data-label) ": "; opacity: .85; font-size: .85em; }
}
@media print { :root { color-scheme: light; } @page { size: landscape; } a { color: inherit; } }
"""
)


def write(root: str | Path | None = None) -> Path:
    """Write the page anew.

    Args:
        root: The folder of runs; none is ``reports``.

    Returns:
        The page.
    """
    folder = Path(root) if root is not None else configs.reports()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    write_atomic(path, page(folder, known(folder), time.time()).encode("utf-8", "replace"))
    return path


# -- the page ---------------------------------------------------------------------------------------


def page(root: Path, runs: Sequence[Known], when: Seconds) -> Html:
    """The page.

    Args:
        root: The folder that it is to lie in.
        runs: From :func:`known`.
        when: It is written, in seconds since 1970.
    """
    states = {state: sum(run.state == state for run in runs) for state in dict.fromkeys(run.state for run in runs)}
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    about = Html("{} run{}{}. Written {}.").format(
        len(runs), "" if len(runs) == 1 else "s", f": {counted}" if counted else "", time_html(when)
    )
    tests = [test for test in dict.fromkeys(run.test for run in runs) if test]
    body = [_test(root, [run for run in runs if run.test == test]) for test in tests]
    rest = [run for run in runs if not run.test]
    if rest:
        body.append(Html("<h2>Runs without a word error rate</h2>{}").format(_table(root, rest, math.nan)))
    if not runs:
        body.append(Html("<p>There is no run yet. Make one: <code>make report</code></p>"))
    if others := list(_others(root)):
        links = Html("").join(Html('<li><a href="{}">{}</a></li>').format(quote(path), name) for path, name in others)
        body.append(Html("<h2>Other pages</h2><ul>{}</ul>").format(links))
    warning = ""
    if len(tests) > 1:
        warning = Html(
            "<p>There are {} test sets. Each has a table of its own: rates of different clips, or of another normaliser, are not to be "
            "compared.</p>"
        ).format(len(tests))
    return PAGE.format(title="Reports", css=Html(INDEX_CSS), about=about, legend=warning, body=Html("").join(body))


def _test(root: Path, runs: list[Known]) -> Html:
    first = runs[0].rate(True, False) or runs[0].rate(True, True)
    assert first is not None
    words = f"{sum(first.words):,} words in {len(first.words):,} clips of {len(set(first.speakers))} speaker"
    about = f"{words}{'' if len(set(first.speakers)) == 1 else 's'}; normaliser {first.normaliser}; intervals are 95 % over utterances."
    most = _most(r for run in runs for r in run.rates if r.condition == "clean")
    title = Html("<h2>Test set {}</h2><p>{}</p>").format(first.test.partition("-")[0], about)
    return Html("{}{}{}").format(title, _table(root, runs, most), _pairs(runs))


def _most(rates: Iterable[Rate]) -> float:
    """The next round number of % above rates and their intervals, where an axis may end."""
    most = max(100 * max(rate.wer, rate.high) for rate in rates)
    step = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return math.ceil(2 * most / step) * step / 2


def _table(root: Path, runs: Sequence[Known], most: float) -> Html:
    """A row a run; with a test's highest rate in %, its forest plot."""
    heads = ["run", "state and cost"]
    if most == most:
        heads += [_axis(most), "clean, before → after, %", "in noise, before → after, %"]
    head = Html("").join(Html("<th>{}</th>").format(name) for name in heads)
    rows = Html("").join(_row(root, run, most) for run in runs)
    return Html('<table class="runs"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>').format(head, rows)


def _row(root: Path, run: Known, most: float) -> Html:
    links = [Html('<a href="{}">{}</a>').format(quote(path), name) for path, name in _links(root, run.id)]
    what = Html('<td><b>{}</b><div class="faint">{}</div><div class="faint">{}</div>{}<div>{}</div></td>').format(
        run.id,
        run.question,
        run.model,
        Html("<div>⚠ {}</div>").format(run.note) if run.note else "",
        Html(" · ").join(links) or Html('<span class="faint">no report yet: <code>speechlab report --run {}</code></span>').format(run.id),
    )
    cost = f"training {clock(run.seconds)}" if run.seconds == run.seconds else "not trained"
    cells = [what, Html('<td data-label="state and cost">{}<br>{}<br>{}</td>').format(run.state, time_html(run.started), cost)]
    if most == most:
        cells.append(Html("<td>{}</td>").format(_forest(run, most, True)))
        cells += [_change(run, clean, name) for clean, name in ((True, "clean, %"), (False, "in noise, %"))]
    return Html("<tr>{}</tr>").format(Html("").join(cells))


def _change(run: Known, clean: bool, name: str, *, condition: bool = True) -> Html:
    """Rates before and after, which noise they are of, and the paired difference."""
    before, after = run.rate(clean, True), run.rate(clean, False)
    shown = [Html('<span class="change">{}</span>').format(_percent(rate)) for rate in (before, after)]
    under = [Html("{}").format(r.condition) for r in (after or before,) if r and not clean and condition]
    if before and after:
        points, verdict = difference(before, after, run.seed)
        under.append(Html("{} points, {}").format(points, verdict))
    told = Html("<br>").join(Html('<span class="faint">{}</span>').format(line) for line in under)
    return Html('<td data-label="{}">{} → {}<br>{}</td>').format(name, *shown, told)


def _percent(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    interval = f" [{100 * rate.low:.2f}, {100 * rate.high:.2f}]" if rate.low == rate.low else ""
    return f"{100 * rate.wer:.2f}{interval}"


def _x(percent: float, most: float) -> float:
    return 8 + (WIDTH - 16) * percent / (most or 1.0)


def _axis(most: float, name: str = "WER on clean speech, %: ○ before, ● after") -> Html:
    """The axis of a table's forest plot, in %."""
    marks = Html("").join(
        Html('<text x="{:.1f}" y="12" text-anchor="{}">{:.3g}</text>').format(_x(share * most, most), anchor, share * most)
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    )
    return Html('{0}<svg viewBox="0 0 {1} 16" role="img" aria-label="axis from 0 to {2:.3g} %">{3}</svg>').format(name, WIDTH, most, marks)


def _forest(run: Known, most: float, clean: bool) -> Html:
    """A run's lines of the forest plot, on clean speech or in noise."""
    lines, told = [], []
    mark = Html(
        '<line x1="{0:.1f}" x2="{1:.1f}" y1="{2}" y2="{2}" stroke="{3}" stroke-width="2.5"/>'
        '<circle cx="{4:.1f}" cy="{2}" r="4.5" fill="{5}" stroke="{3}" stroke-width="2"/>'
    )
    for before, y, colour, fill in ((True, 10, "#8a6d00", "Canvas"), (False, 24, "#0072b2", "#0072b2")):
        if rate := run.rate(clean, before):
            low, high = (end if end == end else rate.wer for end in (rate.low, rate.high))
            ends = (_x(100 * low, most), _x(100 * high, most))
            lines.append(mark.format(*ends, y, colour, _x(100 * rate.wer, most), fill))
            told.append(f"{'before' if before else 'after'} training {_percent(rate)}")
    label = f"{run.id}: WER in %, {'; '.join(told)}"
    return Html('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, ROW, label, Html("").join(lines))


def _pairs(runs: Sequence[Known]) -> Html:
    """Paired differences between the trained systems of a test set."""
    chosen = pairs(runs)
    if not chosen:
        return Html("")
    rows = []
    for a, b in chosen:
        for clean in (True, False):
            first, second = a.rate(clean, False), b.rate(clean, False)
            if first and second:
                cells = (a.id, b.id, second.condition, *difference(first, second, b.seed))
                rows.append(Html("<tr>{}</tr>").format(Html("").join(Html("<td>{}</td>").format(cell) for cell in cells)))
    head = Html("").join(Html("<th>{}</th>").format(name) for name in ("a: older", "b: newer", "heard in", "b − a, points", "verdict"))
    every = len({run.id for pair in chosen for run in pair}) <= ALL_PAIRS
    which = "each with each" if every else "each with the one of the lowest WER, which is flattered by having been chosen"
    about = (
        f"Trained systems compared, {which}: paired, over speakers where there are several. {VERDICTS} Tests and single utterances: "
        "speechlab compare A B."
    )
    table = Html('<table class="pairs"><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>')
    return scrolled(table.format(about, head, Html("").join(rows)), "paired differences")


def short(run: Known) -> Html:
    """What a run's report begins with: error rates before and after training, and by how much they differ; nothing of one without any."""
    after = {clean: rate for clean in (True, False) if (rate := run.rate(clean, False))}
    if not after:
        return Html("")
    most = _most([*after.values(), *(rate for clean in after if (rate := run.rate(clean, True)))])
    line = Html("<tr><td><b>{}</b></td><td>{}</td>{}</tr>")
    lines = [
        line.format(rate.condition, _forest(run, most, clean), _change(run, clean, "WER, %", condition=False))
        for clean, rate in after.items()
    ]
    rate = next(iter(after.values()))
    heads = ("heard", _axis(most, "WER, %: ○ before, ● after training"), "before → after, %")
    head = Html("").join(Html("<th>{}</th>").format(name) for name in heads)
    about = (
        f"{sum(rate.words):,} words in {len(rate.words):,} held-out clips; intervals are 95 % over utterances, differences are paired. "
        + VERDICTS
        + (f" Trained for {clock(run.seconds)}." if run.seconds == run.seconds else "")
    )
    table = Html('<table class="short"><caption>{}</caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table>')
    return scrolled(table.format(about, head, Html("").join(lines)), "in short")


# -- what lies in the folder ----------------------------------------------------------------------------


def _links(root: Path, id: str) -> Iterator[tuple[str, str]]:
    """What was reported of a run: paths within the folder, and names."""
    for pattern, name in (
        ("report.html", "report"),
        ("reproduction.html", "made again: {title}"),
        ("evaluations/hardest/*/index.html", "hardest clips, {folder}"),
    ):
        for path in _inside(root, root / id, pattern):
            told = name.format(title=_title(path), folder=path.parent.name) if "{" in name else name
            yield path.relative_to(root).as_posix(), told


def _others(root: Path) -> Iterator[tuple[str, str]]:
    """Pages of gates and of notebooks, the newest of either first."""
    for pattern, name in (("*/gate.html", "{title} ({folder})"), ("notebooks/*/*.html", "notebook {stem}, {folder}")):
        found = _inside(root, root, pattern)
        for path in sorted(found, key=lambda p: -p.stat().st_mtime):
            yield path.relative_to(root).as_posix(), name.format(title=_title(path), folder=path.parent.name, stem=path.stem)


def _inside(root: Path, folder: Path, pattern: str) -> list[Path]:
    """Files that match and lie in the folder of runs, wherever links in it lead."""
    here = root.resolve()
    return [path for path in sorted(folder.glob(pattern)) if path.is_file() and path.resolve().is_relative_to(here)]


def _title(path: Path) -> str:
    """What a page says of itself."""
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    found = re.search(r"<title>(.*?)</title>", head, re.S)
    return html.unescape(found.group(1)) if found else path.stem
