"""Normalisers and their identity; the one escape, against injection."""

from __future__ import annotations

import html
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechlab.errors import InputError
from speechlab.text import NORMALISERS, escape, normaliser


def hidden(char: str) -> bool:
    """What a reader cannot see, written apart from the code under test."""
    kind = unicodedata.category(char)
    return kind in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") and char not in "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


# --- normalisers ---


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("raw", "raw 1 (25fc588c0eb1c10b)"),
        ("basic", "basic 0.1.15 (e24f3c34e8dde591)"),
        ("english", "english 0.1.15 (cd1d56af653336a3)"),
    ],
)
def test_identity_is_what_published_numbers_carry(name, identity):
    """A change here means that WERs from before and after cannot be compared: say so in the change log."""
    assert normaliser(name).identity == identity


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Mr. Smith didn't go!", "mister smith did not go"),
        ("Colour the café", "color the cafe"),
        ("twenty-one", "21"),
        ("one hundred and five", "105"),
        ("I'm gonna", "i am going to"),
        ("um, uh [noise] (laughs)", ""),
        ("", ""),
        ("$20.50, twenty-one", "$20.5021"),  # a known fault of the field's normaliser, kept so that numbers compare
    ],
)
def test_english(text, normalised):
    assert normaliser("english")(text) == normalised
    assert normaliser("english").words(text) == normalised.split()


def test_basic_leaves_other_languages_their_letters():
    assert normaliser("basic")("Perché NO? L'età...") == "perché no l età"
    assert normaliser("basic")("Ёлка, 5%!") == "ёлка 5"


def test_raw_changes_nothing_that_is_seen():
    assert normaliser("raw")("  Mr.  Smith\tdidn't go! ") == "Mr. Smith didn't go!"
    assert normaliser("raw")("cafe\N{COMBINING ACUTE ACCENT}") == "café"  # one letter, however it was typed


@settings(deadline=None)
@given(st.sampled_from(NORMALISERS), st.text())
def test_words_are_separated_by_single_spaces(name, text):
    out = normaliser(name)(text)
    assert out == " ".join(out.split()) == " ".join(normaliser(name).words(text))


NUMBERS = ["one", "two", "twenty", "hundred", "million", "and", "a", "half", "double", "point", "minus", "oh", "five's", "1st"]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*NUMBERS, *"$£%.,3½²'", "0.5", "20"])).map(" ".join))
def test_english_numbers_never_raise(text):
    normaliser("english")(text)


def test_unknown_normaliser_lists_the_known():
    with pytest.raises(InputError) as e:
        normaliser("englsh")
    for part in ("got:      englsh", "expected:", "do:", 'did you mean "english"?', "basic, english, raw"):
        assert part in str(e.value)


# --- escape ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('"><img src=x onerror=alert(1)>', "&quot;&gt;&lt;img src=x onerror=alert(1)&gt;"),
        ("' onmouseover='alert(1)", "&#x27; onmouseover=&#x27;alert(1)"),
        ("</textarea><svg/onload=alert(1)>", "&lt;/textarea&gt;&lt;svg/onload=alert(1)&gt;"),
        ("<!-- --!>", "&lt;!-- --!&gt;"),
        ("]]>", "]]&gt;"),
        ("&lt;script&gt;", "&amp;lt;script&amp;gt;"),
        ("&#60;b&#62;", "&amp;#60;b&amp;#62;"),
        ("a\0b", "a[U+0000]b"),
        ("a\rb", "a[U+000D]b"),
        ("\x1b[31mred", "[U+001B][31mred"),
        ("<scr\0ipt>", "&lt;scr[U+0000]ipt&gt;"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "a[U+202E]b"),
        ("a\N{RIGHT-TO-LEFT ISOLATE}b\N{POP DIRECTIONAL ISOLATE}", "a[U+2067]b[U+2069]"),
        ("a\N{ZERO WIDTH SPACE}b", "a[U+200B]b"),
        ("a\N{LINE SEPARATOR}b\N{PARAGRAPH SEPARATOR}", "a[U+2028]b[U+2029]"),
        ("a\ufeffb\xad", "a[U+FEFF]b[U+00AD]"),
        ("a\U000e0041b", "a[U+E0041]b"),  # a tag character: invisible text
        ("a\ud800b", "a[U+D800]b"),  # a lone surrogate cannot be written as UTF-8
        ("می\N{ZERO WIDTH NON-JOINER}خواهم", "می\N{ZERO WIDTH NON-JOINER}خواهم"),  # Persian needs it
        ("one\n\ttwo", "one\n\ttwo"),
        (None, "None"),
        (3, "3"),
        ("", ""),
    ],
)
def test_untrusted_text_is_inert(text, shown):
    assert escape(text) == shown


@settings(deadline=None)
@given(st.text() | st.text(alphabet="<>\"'&;#xlt\0\N{RIGHT-TO-LEFT OVERRIDE}"))
def test_no_markup_survives(text):
    shown = escape(text)
    assert not set("<>\"'") & set(shown)
    assert not re.search(r"&(?!(lt|gt|quot|amp|#x27);)", shown)
    assert not any(map(hidden, shown))
    shown.encode("utf-8")


@settings(deadline=None)
@given(st.text().filter(lambda text: not any(map(hidden, text))) | st.text(alphabet="<>\"'&;#xlt"))
def test_seen_text_comes_back(text):
    assert html.unescape(escape(text)) == text
