"""What a page is made of, and whether that is what it was: its outline beside a recorded one, and a picture to look at.

The outline is what the browser tells a screen reader, behind shadow roots too: headings, links, fields, buttons, figures, columns of
tables. Numbers in it are 0; running text, rows, choices, and what there is of GPUs only are left out, so that it is the same on every
machine, at every width and in both themes. What it should be is recorded anew, to be read as a change, by
``SPEECHLAB_FREEZE=1 pytest tests/test_app.py -k "fits and light and 1280"``.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from browser import becomes

FROZEN = Path(__file__).parent / "frozen" / "pages.yaml"
PICTURES = Path(__file__).parents[1] / "build" / "pages"
ROLES = ("heading", "link", "button", "textbox", "combobox", "checkbox", "slider", "img", "figure", "columnheader", "caption", "meter",
         "progressbar", "log", "navigation", "main", "alert")  # fmt: skip
TOLD = re.compile(rf"\s*- '?({'|'.join(ROLES)})( |:|'|$)")
NUMBER = re.compile(r"(?<!level=)[-+]?\b\d[\d.,]*(e[-+]?\d+)?")


def outline(page: Any) -> list[str]:
    """Role, name and state of all that is on a page, a line each, in its order."""
    lines = page.locator("body").aria_snapshot().splitlines()
    return [NUMBER.sub("0", line.strip(" :").removeprefix("- ").strip("'")) for line in lines if TOLD.match(line) and "GPU" not in line]


def compare(page: Any, name: str, look: str, patience: float = 30.0) -> None:
    """Keep a picture of a page, and fail where it is not made of what was recorded.

    Args:
        page: Open.
        name: The page's, in the record.
        look: Width and theme, for the picture's name.
        patience: Seconds, as a page comes in parts.
    """
    known = yaml.safe_load(FROZEN.read_text("utf-8")) if FROZEN.exists() else {}
    freeze, narrow = os.environ.get("SPEECHLAB_FREEZE"), page.viewport_size["width"] < 860  # where tables have no heads
    expected = [line for line in known.get(name, []) if not (narrow and line.startswith("columnheader"))]

    def found() -> list[str]:
        return [line for line in outline(page) if not (narrow and line.startswith("columnheader"))]

    becomes(lambda: freeze or found() == expected, patience)
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{re.sub('[^a-z]+', '-', name)}-{look}.png", full_page=True)
    if freeze:
        FROZEN.write_text(yaml.safe_dump({**known, name: found()}, allow_unicode=True, width=200), "utf-8")
        return
    told = [line for line in difflib.ndiff(expected, found()) if line[0] in "-+"]
    assert not told, f"{name}, {look}: " + "; ".join(told)
