"""HTML from plain values: transcripts side by side, players, tables, definition lists.

:class:`Html` escapes whatever is formatted into it with :func:`speechlab.text.escape` unless it is
``Html`` itself, so untrusted text becomes markup nowhere: forgetting the escape is not possible, only
writing ``Html(untrusted)`` is. Colours are half transparent over the reader's own background and
always paired with a second sign (strike, underline), so pages read in light, in dark, in
JupyterLab's themes and without colour vision.

Not covered: Markdown but the lab's own (:func:`markdown_html`); layouts (see :mod:`speechlab.board`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup

from speechlab import text
from speechlab.config import leaves
from speechlab.scoring import align
from speechlab.units import Seconds, moment

CSS = """
.speechlab { font: 14px/1.45 system-ui, sans-serif; color: inherit; overflow-x: auto; padding-bottom: 4px; }
.speechlab table { border-collapse: collapse; margin: .4em 0; font-size: inherit; }
.speechlab caption { text-align: left; padding: .2em 0; opacity: .8; }
.speechlab th, .speechlab td { text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid #8884; }
.speechlab th { font-weight: 600; border-bottom: 1px solid #888a; }
.speechlab td:first-child { min-width: 6em; }
.speechlab .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.speechlab .faint { opacity: .85; font-size: .9em; overflow-wrap: anywhere; }
.speechlab dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1em; margin: .4em 0; }
.speechlab dt { opacity: .85; } .speechlab :is(dt, dd) { margin: 0; overflow-wrap: anywhere; }
.speechlab s, .speechlab u { padding: 0 .15em; border-radius: .2em; text-decoration-thickness: 2px; text-underline-offset: 3px; }
.speechlab s.del { background: #0072b238; text-decoration-color: #0072b2; }
.speechlab u.ins { background: #d55e0038; text-decoration: underline double #d55e00; }
.speechlab .sub s { background: #cc79a730; text-decoration-color: #cc79a7; opacity: .8; }
.speechlab .sub u { background: #cc79a748; text-decoration: underline wavy 1.5px #cc79a7; }
.speechlab .samples td:first-child { min-width: 12em; }
.speechlab .scroll { overflow-x: auto; } .speechlab .scroll:focus-visible { outline: 2px solid; outline-offset: -2px; }
.speechlab .prose { max-width: 60em; overflow-wrap: anywhere; } .speechlab .prose td, .speechlab .prose th { overflow-wrap: normal; }
.speechlab .prose td:nth-child(2):last-child { overflow-wrap: anywhere; }
.speechlab .prose h3, .speechlab .prose h4 { font: 600 1.1em system-ui, sans-serif; margin: 1.2em 0 .3em; }
.speechlab .prose p, .speechlab .prose ul { margin: .4em 0; } .speechlab .prose ul { padding-left: 1.3em; }
.speechlab .prose pre { overflow-x: auto; padding: .6em .8em; background: #8882; border-radius: .3em; }
.speechlab audio { height: 32px; width: 230px; max-width: 100%; display: block; margin-top: .3em; }
@media (max-width: 640px) {
  .speechlab th, .speechlab td { padding: .3em .4em; }
  .speechlab .samples td:first-child { min-width: 0; }
  .speechlab .samples thead { display: none; }
  .speechlab .samples tr, .speechlab .samples td { display: block; border: 0; padding: .15em 0; text-align: left; }
  .speechlab .samples tr { border-bottom: 1px solid #8886; padding: .6em 0; }
  .speechlab .samples td[data-label]::before { content: attr(data-label) ": "; opacity: .7; font-size: .85em; }
  .speechlab dl { grid-template-columns: 1fr; gap: 0; } .speechlab dd { margin: 0 0 .4em 1em; }
}
@media print {
  .speechlab, .speechlab .scroll, .speechlab .log { overflow: visible; max-height: none; }
  .speechlab audio { display: none; } .speechlab tr, .speechlab img, .speechlab svg { break-inside: avoid; }
  .speechlab th, .speechlab td { padding: .25em .5em; }
}
"""


class Html(Markup):
    """Markup that is known to be safe; shows itself in a notebook cell, with its style sheet.

    ``format`` and ``join`` escape every argument that is not ``Html`` (or another ``__html__``).

    >>> Html("<td>{}</td>").format("<script>")
    Html('<td>&lt;script&gt;</td>')
    """

    __slots__ = ()

    @classmethod
    def escape(cls, s: Any, /) -> Html:
        """The text made inert by :func:`speechlab.text.escape`; ``Html`` comes back as it is."""
        return cls(s.__html__()) if hasattr(s, "__html__") else cls(text.escape(s))

    def _repr_html_(self) -> str:
        return f'<style>{CSS}</style><div class="speechlab">{self}</div>'


def alignment_html(reference: str, hypothesis: str, normaliser: text.Normaliser | None = None) -> Html:
    """One line that shows a hypothesis against its reference, word by word.

    Substituted words are struck and followed by what was heard (wavy underline), deleted words are
    struck, inserted words are underlined twice; each has a title for screen readers and hover.

    Args:
        reference: What was said.
        hypothesis: What was recognised.
        normaliser: Applied to both first, as for the WER; without it words are compared as written.
    """
    words = normaliser.words if normaliser else str.split
    parts = [_word(op, ref, hyp) for op, ref, hyp in align(words(str(reference)), words(str(hypothesis)))]
    return Html(" ").join(parts) if parts else Html('<span class="faint">(nothing said, nothing heard)</span>')


def _word(op: str, ref: str | None, hyp: str | None) -> Html:
    if op == "hit":
        return Html.escape(hyp)
    if op == "del":
        return Html('<s class="del" title="deleted: said but not heard">{}</s>').format(ref)
    if op == "ins":
        return Html('<u class="ins" title="inserted: heard but not said">{}</u>').format(hyp)
    return Html('<span class="sub" title="substituted: said {0}, heard {1}"><s>{0}</s> <u>{1}</u></span>').format(ref, hyp)


# for Panel's fields, which are white whatever the page is
FIELD_CSS = ".bk-input { background: transparent; color: inherit; } .bk-input option { background: Canvas; color: CanvasText; }\n"
LEGEND = Html('<p class="faint">{} said but not heard, {} heard but not said, {} said one thing, heard another</p>').format(
    _word("del", "deleted", None), _word("ins", None, "inserted"), _word("sub", "said", "heard")
)


def framed(body: Html) -> str:
    """Markup as a live text holds it, within what :data:`CSS` is for; the style sheet itself goes along with the text."""
    return str(Html('<div class="speechlab">{}</div>').format(body))


def status(words: str) -> str:
    """What is said of what goes on, in a live text, so that a screen reader says it too.

    Args:
        words: Plain text, a line each.
    """
    return framed(Html('<p role="status">{}</p>').format(Html("<br>").join(Html("{}").format(line) for line in words.splitlines())))


# a page of its own: asks for no network, runs no script
PAGE = Html("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="script-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'">
<title>{title}</title><style>:root {{ color-scheme: light dark; }} body {{ margin: 0; background: Canvas; color: CanvasText; }}
main {{ max-width: 780px; margin: 0 auto; padding: 1rem; }} h1 {{ font: 600 1.4em system-ui, sans-serif; }}{css}</style></head>
<body><main class="speechlab"><h1>{title}</h1><p>{about}</p>{legend}{body}</main></body></html>
""")


def player_html(mp3: bytes, name: str = "clip") -> Html:
    """An audio player that carries its sound, so that it plays from a single file without a network.

    Args:
        mp3: An MP3 file's bytes.
        name: What a screen reader says of it.
    """
    sound = base64.b64encode(mp3).decode()
    return Html('<audio controls preload="metadata" aria-label="{}" src="data:audio/mpeg;base64,{}"></audio>').format(name, sound)


def samples_html(
    rows: Iterable[Mapping[str, Any]],
    normaliser: text.Normaliser | None = None,
    legend: bool = True,
    systems: Mapping[str, str] = MappingProxyType({"hypothesis": "recognised"}),
    caption: str = "",
) -> Html:
    """Reference against what one system or several recognised, a clip a row, with players.

    Args:
        rows: Each with ``id``, ``reference``, ``audio`` (MP3 bytes, or None for no player) and a text for each system.
        normaliser: As for :func:`alignment_html`.
        legend: Whether to explain the signs below the table.
        systems: Key in the rows to heading, for each column of recognised text.
        caption: A line above the table.
    """
    cell = Html('<td data-label="{}">{}</td>')
    body = Html("").join(
        Html('<tr><td><span class="faint">{}</span>{}</td>{}{}</tr>').format(
            row["id"],
            player_html(row["audio"], row["id"]) if row.get("audio") else "",
            cell.format("reference", row["reference"] or Html('<span class="faint">(empty)</span>')),
            Html("").join(cell.format(name, alignment_html(row["reference"], row[key], normaliser)) for key, name in systems.items()),
        )
        for row in rows
    )
    if not body:
        return Html('<p class="faint">No clips yet.</p>')
    names = Html("").join(Html("<th>{}</th>").format(name) for name in ("clip", "reference", *systems.values()))
    title = Html("<caption>{}</caption>").format(caption) if caption else ""
    page = Html('<table class="samples">{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}')
    return page.format(title, names, body, LEGEND if legend else "")


def table_html(table: pd.DataFrame, formats: Mapping[str, str] | None = None, caption: str = "") -> Html:
    """A small table without its index; numeric columns are set flush right.

    Args:
        table: What to show; cells that are :class:`Html` stay markup, all else is escaped.
        formats: Column name to format, as in ``{"WER": "{:.2f} %"}``; missing values show as a dash.
        caption: A line above the table.
    """
    formats = formats or {}
    kinds = [Html(' class="number"') if pd.api.types.is_numeric_dtype(table[c]) or c in formats else Html("") for c in table]
    head = Html("").join(Html("<th{}>{}</th>").format(kind, c) for kind, c in zip(kinds, table, strict=True))
    rows = Html("").join(
        Html("<tr>{}</tr>").format(
            Html("").join(Html("<td{}>{}</td>").format(k, _cell(v, formats.get(str(c)))) for k, c, v in zip(kinds, table, row, strict=True))
        )
        for row in table.itertuples(index=False, name=None)
    )
    title = Html("<caption>{}</caption>").format(caption) if caption else Html("")
    return scrolled(Html("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(title, head, rows), caption or "table")


def scrolled(body: Html, name: str) -> Html:
    """What may be wider than its place, so that it scrolls for itself, by the keyboard too (WCAG 2.1.1).

    Args:
        body: Usually a table.
        name: What a screen reader says of it.
    """
    return Html('<div class="scroll" role="group" tabindex="0" aria-label="{}">{}</div>').format(name, body)


def _cell(value: Any, pattern: str | None) -> Any:
    if isinstance(value, Html):
        return value
    if value is None or value != value:  # NaN and NaT differ from themselves
        return "–"
    if pattern:
        return pattern.format(value)
    return f"{value:.4g}" if isinstance(value, float) else value


def time_html(when: Seconds) -> Html:
    """A time with its offset from UTC; pages that the lab serves show it in their reader's zone (``templates/zone.js``).

    Args:
        when: In seconds since 1970; what is no number shows as a dash.
    """
    if when != when:
        return Html("–")
    utc = datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Html('<local-time><time datetime="{}">{}</time></local-time>').format(utc, moment(when))


def definitions_html(values: Mapping[str, Any], others: Mapping[str, Any] | None = None, name: str = "others") -> Html:
    """A definition list of plain, possibly nested values: a config, a provenance record.

    Args:
        values: Nested mappings become dotted names; None shows as a dash.
        others: Folded away behind their number and ``name``.
        name: What the others are.
    """
    items = Html("").join(Html("<dt>{}</dt><dd>{}</dd>").format(key, value) for key, value in _flat(values))
    fold = ""
    if others:
        fold = Html("<details><summary>{} {}</summary>{}</details>").format(len(list(_flat(others))), name, definitions_html(others))
    return Html("<dl>{}</dl>{}").format(items, fold)


def markdown_html(text: str) -> Html:
    """Markdown that the lab wrote, such as a model card, as a part of a page: its header left out, headings two levels down.

    HTML in it stays text; there are neither links nor pictures. Tables scroll for themselves.

    Args:
        text: CommonMark with tables; what is untrusted in it has gone through :func:`speechlab.card.plain`.
    """
    body = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL)
    tokens = _markdown().parse(body)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 6)}"
    page = _markdown().renderer.render(tokens, _markdown().options, {})
    page = page.replace("<table>", '<div class="scroll" role="group" tabindex="0" aria-label="table"><table>').replace(
        "</table>", "</table></div>"
    )
    page = page.replace("<pre>", '<pre tabindex="0">')
    return Html('<div class="prose">{}</div>').format(Html(page))


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in leaves(values):
        if isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(str(item) for item in value) or "–"
        else:
            yield name, "–" if value is None else value
