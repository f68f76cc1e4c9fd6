"""The voices of the telephone prompts: where each comes from, pinned, and whom to name.

Notable: eleven sources, five languages in both bands and a second Italian voice on the telephone only, of the same
wording as the first in most places and of another in some. Packages and releases carry SHA-256 sums; those of the releases are
the ones that Debian's signed source package gives for its upstream files. Beside this module lie the sums of every
single file, in the form of ``sha256sum``.

Not covered: the packages' GSM and A-law forms; other voices that Debian has without transcripts of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

from speechlab.errors import InputError, did_you_mean

Band = Literal["wide", "telephone"]

FORMAT = {"wide": "g722", "telephone": "wav"}  # 16 kHz and without a header; 8 kHz, linear
VERSION = "1.6.1"


@dataclass(frozen=True)
class Deb:
    """A Debian package, pinned."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """What ``apt-get download`` calls it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all.deb"


@dataclass(frozen=True)
class Source:
    """Where the recordings of a voice in a band come from, and on what terms.

    Attributes:
        name: First part of every id, and of the sums' file name: ``it.carlo.telephone``; English in wideband, which was first, is ``en``.
        language: BCP-47.
        speaker: Whose voice it is.
        band: ``wide`` or ``telephone``.
        transcript: Name of the file with the texts.
        debs: Packages that hold transcript and sounds.
        tarball: Address of the upstream release with both; empty if none is known with its sum.
        tarball_sha256: Of the release.
        licence: Of the recordings.
        attribution: Who made them, and what was done to them here.
    """

    name: str
    language: str
    speaker: str
    band: Band
    transcript: str
    debs: tuple[Deb, ...]
    tarball: str
    tarball_sha256: str
    licence: str
    attribution: str

    @property
    def suffix(self) -> str:
        """Of the sound files, with the dot."""
        return "." + FORMAT[self.band]

    @property
    def sums(self) -> str:
        """SHA-256 of every file, as ``sha256sum`` writes them."""
        return resources.files("speechlab.corpora").joinpath(f"prompts.{self.name}.sha256").read_text("ascii")


BY_SA = "CC BY-SA 3.0 (https://creativecommons.org/licenses/by-sa/3.0/)"
BY_SA_IT = "CC BY-SA 3.0 Italy (https://creativecommons.org/licenses/by-sa/3.0/it/)"
BY = "CC BY 3.0 (https://creativecommons.org/licenses/by/3.0/)"
CHANGES = {"wide": "Decoded from G.722 and split by SpeechLab.", "telephone": "Resampled from 8 kHz and split by SpeechLab."}
ALLISON = "recorded by Allison Smith (theivrvoice.com), sponsored by Digium, Inc."
CARLO_TEXT = "translated by Silvia Petrin from the English texts of Digium, Inc."
# language: voice, language's name, licence, makers, the transcript package's sum
CORE = {
    "en": ("allison", "English", BY_SA, ALLISON, "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50"),
    "es": ("allison", "Mexican Spanish", BY_SA, ALLISON, "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74"),
    "fr": ("june", "Canadian French", BY_SA, "recorded by June Wallack (junewallack.com), translated by Clod Patry, "
           "Kristopher Lalletti and June Wallack, sponsored by Digium, Inc., Unlimitel (unlimitel.ca) and BGM Informatique (bgm.qc.ca).",
           "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056"),
    "it": ("carlo", "Italian", BY_SA, "recorded by Carlo Flora (carloflora.com; his voice can be had at segreterietelefoniche.it), "
           f"{CARLO_TEXT}",
           "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b"),
    "ru": ("ivrvoice", "Russian", BY, "provided by Maxim Topal (ivrvoice.ru).",
           "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab"),
}  # fmt: skip
# language and band: sums of the package and of the upstream release
SOUNDS: dict[tuple[str, Band], tuple[str, str]] = {
    ("en", "wide"): ("38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806",
                     "59891033e764d9dffc5ccdd78e845a1c8ea6bed0b434128bb0199c63ef591770"),
    ("en", "telephone"): ("2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
                          "07ad543764567ea235d3a96dcd15ecce4521855efc295de6f5443299c331ec0b"),
    ("es", "wide"): ("e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8",
                     "3c474f73cc4f65478b3cf05ab0c5da19c8ce408699f61491f6aafba450cb540a"),
    ("es", "telephone"): ("9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
                          "4486234639392254da452f03d835e89c37416367b11cc8c76bc8492151ac4ebe"),
    ("fr", "wide"): ("7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0",
                     "7ff3ca96bbb295a6458e6eb1ff92690d9a5d0db0b4ddfa2c488237e4d251efbe"),
    ("fr", "telephone"): ("8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
                          "43a5d591dc3e70c2e2c0b4c41b21980efb4de4c949172ffddb03a7ae5819f8ed"),
    ("it", "wide"): ("46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016",
                     "44a7fd7b067ff7f71df7fec31f9a8c960e13d35ca30c31878913c4020bfc00b6"),
    ("it", "telephone"): ("5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
                          "5dd007716a64f9599e47a9ce51ec6decb93221846d2d5b694120ae85f891ed13"),
    ("ru", "wide"): ("673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b",
                     "fde2a071b811a081219138693d6813d122d91c2c3423936274b110b97645b61b"),
    ("ru", "telephone"): ("ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
                          "db52d0a1828f6ee0c211f5c30fa5b8e35753e3bcff3d9ec6fa3e1cdc833954bf"),
}  # fmt: skip


def _core(language: str, band: Band) -> Source:
    voice, spelt, licence, makers, text_sum = CORE[language]
    deb_sum, tarball_sum = SOUNDS[language, band]
    package, form = f"asterisk-core-sounds-{language}", FORMAT[band]
    return Source(
        name="en" if (language, band) == ("en", "wide") else f"{language}.{voice}.{band}",
        language=language,
        speaker=voice,
        band=band,
        transcript=f"core-sounds-{language}.txt",
        debs=(Deb(package, f"{VERSION}-1", text_sum), Deb(f"{package}-{form}", f"{VERSION}-1", deb_sum)),
        tarball=f"https://downloads.asterisk.org/pub/telephony/sounds/releases/{package}-{form}-{VERSION}.tar.gz",
        tarball_sha256=tarball_sum,
        licence=licence,
        attribution=f"Asterisk core sounds {VERSION}, {spelt}: {makers} {CHANGES[band]}",
    )


_MENARDI = Source(
    name="it.menardi.telephone",
    language="it",
    speaker="menardi",
    band="telephone",
    transcript="core-sounds-it.txt",  # of the other voice: it has the same keys, and mostly the same words
    debs=(
        Deb("asterisk-core-sounds-it", f"{VERSION}-1", CORE["it"][4]),
        Deb(
            "asterisk-prompt-it-menardi-wav", "1:1.4.22+mm20110907-3.1", "3094530d98f8758ac275572d59624c41f60969fef883f34f4886d144f3dfeb21"
        ),
    ),
    tarball="",
    tarball_sha256="",
    licence=BY_SA_IT,
    attribution="Italian sound files for Asterisk, made by Marco Menardi and his wife Paola Dal Zot; for downloads, updates and others see "
    f"http://www.voip.ammdomus.it. Texts: Asterisk core sounds {VERSION}, Italian, {CARLO_TEXT} {CHANGES['telephone']}",
)

# in the order in which a language's voices are offered
SOURCES = {source.name: source for source in [*(_core(language, band) for language, band in SOUNDS), _MENARDI]}


def find(language: str, voice: str | None, band: str) -> Source:
    """The source of a language, voice and band.

    Args:
        language: BCP-47.
        voice: Of the language; None is its first.
        band: ``wide`` or ``telephone``.

    Raises:
        InputError: if one of them is not known, or the voice was not recorded in the band.
    """
    of_language = [source for source in SOURCES.values() if source.language == language]
    if not of_language:
        raise InputError(f'The prompts are not there in "{language}".', got=language, expected="a known language",
                         do=did_you_mean(language, CORE))  # fmt: skip
    of_voice = [source for source in of_language if source.speaker == (voice or of_language[0].speaker)]
    if not of_voice:
        raise InputError(f'The prompts in "{language}" have no voice "{voice}".', got=voice, expected="a voice of that language, or none",
                         do=did_you_mean(str(voice), {source.speaker for source in of_language}))  # fmt: skip
    for source in of_voice:
        if source.band == band:
            return source
    bands = " or ".join(source.band for source in of_voice)
    raise InputError(f'The voice "{of_voice[0].speaker}" is not there in the band "{band}".', got=band,
                     expected=f"{bands}: no other recording exists", do=f"set the band to {bands}, or choose another voice")  # fmt: skip
