"""What on a page keeps people out, as axe-core finds it (WCAG 2.1, A and AA), behind shadow roots too."""

from __future__ import annotations

from typing import Any

from axe_playwright_python.base import AXE_SCRIPT

RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}, "resultTypes": ["violations"]}


def barriers(page: Any) -> list[str]:
    """Serious and critical violations, a line each: rule, place, and why."""
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("rules => axe.run(document, rules)", RULES)
    return [
        f"{rule['id']}: {_place(node['target'])} {node['html'][:120]} ({' '.join((node['failureSummary'] or '').split())[:200]})"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def _place(target: list[Any]) -> str:
    """A selector through shadow roots, of which axe gives the parts, as one text."""
    return " ".join(" ".join(part) if isinstance(part, list) else part for part in target)
