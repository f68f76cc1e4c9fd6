"""Text on its way to a number or to a page: normalisers with an identity, and the one escape.

A WER without its normaliser's name, version and hash cannot be compared with another, so a
normaliser carries all three. ``raw`` leaves words, case and punctuation as they stand.

Not covered: languages beyond what ``whisper-normalizer``'s basic rules do (they strip Hindi vowel
signs, for one); vocabularies of CTC models.
"""

from __future__ import annotations

import hashlib
import html
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import PurePath

from speechlab.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Normaliser:
    """A text normaliser and what identifies it.

    Attributes:
        name: ``raw``, ``basic`` or ``english``.
        version: Version of the package the rules come from.
        sha256: Hash over the rules' source and data files, first 16 hex digits.
    """

    name: str
    version: str
    sha256: str
    _apply: Callable[[str], str] = field(repr=False, compare=False)

    def __call__(self, text: str) -> str:
        """The normalised text, words separated by single spaces."""
        return " ".join(self._apply(text).split())

    def words(self, text: str) -> list[str]:
        """The normalised words."""
        return self(text).split()

    @property
    def identity(self) -> str:
        """``name version (hash)``, to print beside every WER."""
        return f"{self.name} {self.version} ({self.sha256})"


NORMALISERS = ("raw", "basic", "english")
REMEMBERED = 20_000  # texts whose normalised form is kept, some MB


@lru_cache
def normaliser(name: str) -> Normaliser:
    """Look a normaliser up by name.

    Args:
        name: One of :data:`NORMALISERS`; ``basic`` and ``english`` are those of the Whisper paper
            (Radford et al., 2022, appendix C) as packaged by ``whisper-normalizer``.

    Raises:
        InputError: if the name is not known.
    """
    if name == "raw":
        return Normaliser("raw", "1", hashlib.sha256(b"unicode NFC").hexdigest()[:16], _nfc)
    if name not in NORMALISERS:
        raise InputError(f'Unknown normaliser "{name}".', got=name, expected="a known name", do=did_you_mean(name, NORMALISERS))
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    # every run on a corpus has the same references, and most answers: half a millisecond each, over hundreds of runs
    apply = lru_cache(REMEMBERED)(BasicTextNormalizer() if name == "basic" else EnglishTextNormalizer())
    sources = ["basic.py"] if name == "basic" else ["basic.py", "english.py", "normalizers/english.json"]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(files("whisper_normalizer").joinpath(*PurePath(source).parts).read_bytes())
    return Normaliser(name, version("whisper-normalizer"), digest.hexdigest()[:16], apply)


def normaliser_for(language: str) -> Normaliser:
    """The one under which texts of a language are compared: ``english``, or ``basic`` for all others.

    Args:
        language: BCP-47.
    """
    return normaliser("english" if language == "en" else "basic")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def escape(text: object) -> str:
    """Make untrusted text inert in HTML: the one place where a transcript becomes markup.

    Markup characters are escaped, and what :func:`shown` shows is shown.

    >>> escape("<b>&")
    '&lt;b&gt;&amp;'
    """
    return html.escape(shown(text), quote=True)


def shown(text: object) -> str:
    """The text with control, separator and bidirectional-override characters, which could reorder what a reader sees, as code points.

    >>> shown("a" + chr(0x202E) + "b")
    'a[U+202E]b'
    """
    return "".join(f"[U+{ord(c):04X}]" if _hidden(c) else c for c in str(text))


def _hidden(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"} and char not in "\n\t\u200c\u200d"
