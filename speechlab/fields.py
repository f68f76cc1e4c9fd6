"""The config as a form shows it: each field with its help, bounds and choices, read from the config's own schema.

Notable: nothing is said twice. Help is the description in :mod:`speechlab.config`, a section's the first sentence of its class. What
somebody enters becomes the ``section.key=value`` texts that the shell takes after ``--set``, so both give the same experiment. A number
that is none stays text here, so that the config's own error says what is wrong with it.

Not covered: widgets (:mod:`speechlab.form`); items with a comma in lists of texts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from speechlab.config import Experiment, override

Kind = Literal["text", "number", "switch", "choice", "choices", "list"]
Values = Mapping[str, Any]  # by dotted name; of a section that can be left out, whether it is there


@dataclass(frozen=True)
class Field:
    """A value of the config.

    Attributes:
        name: Dotted.
        kind: How it is entered.
        help: What it is.
        bounds: In words.
        choices: Of a ``choice`` or of ``choices``.
        optional: Whether it can be left empty.
        default: If its section is named and it is not.
        numbers: Whether the items of a list are numbers.
    """

    name: str
    kind: Kind
    help: str = ""
    bounds: str = ""
    choices: tuple[str, ...] = ()
    optional: bool = False
    default: Any = None
    numbers: bool = False

    @property
    def key(self) -> str:
        """Its name within its section."""
        return self.name.rpartition(".")[2]

    def read(self, entered: Any) -> Any:
        """The value that was entered.

        Args:
            entered: Text, or of a switch a truth value, of ``choices`` a list.
        """
        if self.kind in ("switch", "choices"):
            return bool(entered) if self.kind == "switch" else [str(item) for item in entered]
        text = str(entered).strip()
        if self.kind == "list":
            items = [item.strip() for item in text.split(",") if item.strip()]
            return [_number(item) for item in items] if self.numbers else items
        if not text and (self.optional or self.kind == "number"):
            return None
        return _number(text) if self.kind == "number" else text

    def shown(self, value: Any) -> Any:
        """A value as it is entered: what :meth:`read` takes."""
        if self.kind == "switch":
            return bool(value)
        if self.kind == "choices":
            return [str(item) for item in value or ()]
        if self.kind == "list":
            return ", ".join(map(str, value or ()))
        return "" if value is None else str(value)


@dataclass(frozen=True)
class Group:
    """A section of the config.

    Attributes:
        name: Dotted; empty is the config's own head.
        help: What it is.
        optional: Whether it can be left out.
        fields: Its values, without those of sections in it.
    """

    name: str
    help: str
    optional: bool
    fields: tuple[Field, ...]


@lru_cache(maxsize=1)
def groups() -> tuple[Group, ...]:
    """All sections of the config, each before those in it."""
    schema = Experiment.model_json_schema()
    return tuple(_groups("", schema, schema["$defs"], False))


@lru_cache(maxsize=1)
def known() -> dict[str, Field]:
    """All fields by name."""
    return {field.name: field for group in groups() for field in group.fields}


def values(experiment: Experiment) -> dict[str, Any]:
    """An experiment's values by name; those of a section that is left out are what they would be if it were not.

    Args:
        experiment: The config.
    """
    tree, found = experiment.model_dump(), dict[str, Any]()
    for group in groups():
        section: Any = tree
        for part in group.name.split(".") if group.name else ():
            section = (section or {}).get(part)
        if group.optional:
            found[group.name] = section is not None
        for field in group.fields:
            value = field.default if section is None else section[field.key]
            found[field.name] = list(value) if isinstance(value, list | tuple) else value
    return found


def overrides(base: Values, changes: Values) -> list[str]:
    """What has to be set so that a config becomes another.

    Args:
        base: Its values.
        changes: Those that are to be other ones.

    Returns:
        Texts as for :func:`speechlab.config.load`.
    """
    found = []
    for group in groups():
        there = changes.get(group.name, base[group.name]) if group.optional else True
        own = [override(f.name, changes[f.name]) for f in group.fields if f.name in changes] if there else []
        if group.optional and there != base[group.name] and not own:
            found.append(override(group.name, {} if there else None))
        found += own
    return found


def nearest(name: str) -> str:
    """The field or section that a problem is shown at: ``augment.speed.factors.0`` is at ``augment.speed.factors``."""
    places = {*known(), *(group.name for group in groups())}
    while name not in places:
        name = name.rpartition(".")[0]
    return name


def _groups(name: str, schema: Mapping[str, Any], definitions: Mapping[str, Any], optional: bool) -> Iterator[Group]:
    within, own = [], []
    for key, about in schema["properties"].items():
        full = f"{name}.{key}" if name else key
        options = [option for option in about.get("anyOf", [about]) if option.get("type") != "null"]
        assert len(options) == 1, f"{full} can be of several kinds, for which there is no field"
        there = len(about.get("anyOf", ())) > 1
        if "$ref" in options[0]:
            within.append(_groups(full, definitions[options[0]["$ref"].rpartition("/")[2]], definitions, there))
        else:
            own.append(_field(full, about, options[0], there))
    help = "" if not name else str(schema.get("description", "")).split("\n\n")[0].replace("\n", " ").replace("``", "")
    yield Group(name, help, optional, tuple(own))
    for section in within:
        yield from section


def _field(name: str, about: Mapping[str, Any], kind: Mapping[str, Any], optional: bool) -> Field:
    items, type = kind.get("items", {}), kind["type"]
    known: dict[str, Kind] = {"boolean": "switch", "integer": "number", "number": "number", "string": "text", "array": "list"}
    choices = tuple(kind.get("enum") or items.get("enum") or ())
    shape: Kind = known[type] if not choices else "choices" if type == "array" else "choice"
    numbers = items.get("type") in ("integer", "number")
    bounds = _bounds(items if type == "array" else kind, whole="integer" in (type, items.get("type")))
    return Field(name, shape, about.get("description", ""), bounds, choices, optional, about.get("default"), numbers)


def _bounds(kind: Mapping[str, Any], whole: bool) -> str:
    """In words: ``1 or more``, ``over 0, at most 1``."""
    least, over, most, under = (kind.get(k) for k in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"))
    if least is not None and most is not None:
        told = [f"{least:,} to {most:,}"]
    else:
        told = [f"{least:,} or more"] if least is not None else [f"over {over:,}"] if over is not None else []
        told += [f"at most {most:,}"] if most is not None else [f"under {under:,}"] if under is not None else []
    return ", ".join((["whole"] if whole and kind.get("type") == "integer" else []) + told)


def _number(text: str) -> int | float | str:
    """A number however it is written, ``1e-4`` included; text that is none stays text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def listed(changed: Sequence[str]) -> str:
    """Overrides as the shell takes them after a command."""
    return " ".join(f"--set {shlex.quote(item)}" for item in changed)
