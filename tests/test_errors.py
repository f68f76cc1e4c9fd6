"""The form of a message: got, expected, do."""

from __future__ import annotations

import pytest

from speechlab.errors import InputError, did_you_mean


def test_message_has_its_parts_in_order():
    message = str(InputError("Bad.", got=3, expected="a text", do="quote it"))
    assert message == "Bad.\n  got:      3\n  expected: a text\n  do:       quote it"


def test_absent_parts_leave_no_line():
    assert str(InputError("Bad.")) == "Bad."


def test_falsy_values_are_still_shown():
    assert "got:      0" in str(InputError("Bad.", got=0))
    assert "got:      []" in str(InputError("Bad.", got=[]))


def test_it_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("epocs", ["seed", "epochs"], 'did you mean "epochs"? known: epochs, seed'),
        ("zzz", ["seed", "epochs"], "known: epochs, seed"),
        ("", [], "known: "),
    ],
)
def test_suggestions(word, known, said):
    assert did_you_mean(word, known) == said
