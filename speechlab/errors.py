"""The one error that is the user's to mend: it says what was got, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """Input that SpeechLab cannot use, with the remedy in the message.

    Args:
        problem: One sentence that names the thing at fault.
        got: The value as it came, shown with ``repr`` unless it is text already.
        expected: What would have been accepted.
        do: The next step for the reader.
        problems: Of several values at once, what is wrong with each, by its dotted name.
    """

    def __init__(
        self, problem: str, *, got: object = None, expected: str = "", do: str = "", problems: Mapping[str, str] | None = None
    ) -> None:
        self.problems = dict(problems or {})
        lines = [problem]
        if got is not None:
            lines.append(f"  got:      {got if isinstance(got, str) else repr(got)}")
        if expected:
            lines.append(f"  expected: {expected}")
        if do:
            lines.append(f"  do:       {do}")
        super().__init__("\n".join(lines))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the nearest known one, if near, and the whole list.

    >>> did_you_mean("epocs", ["epochs", "seed"])
    'did you mean "epochs"? known: epochs, seed'
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    return f"{hint}known: {', '.join(names)}"
