"""Who may come in to the served pages and what they may do: a file of users, a line each, and the secret that signs their cookies.

Notable: the file is ``name:role:hash``, for its owner's eyes alone (mode 0600). A hash is scrypt's (RFC 7914) with a salt of its own and
its cost beside it; ``-`` is someone who has no password here, because another service knows them (OAuth). A name that nobody has costs
as much time as a wrong password. The file is read again whenever it has changed, so who was removed is out at once.

Not covered: groups; passwords that are known from leaks; a second factor (an OAuth service can ask for one).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from speechlab import runs
from speechlab.errors import InputError, did_you_mean

Role = Literal["reader", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
SHORTEST, LONGEST = 10, 1024  # of a password, in characters; NIST SP 800-63B asks for 8 at least, and for no rules beside the length
COST = (15, 8, 3)  # log2 of N, r, p: 32 MB and some 0.3 s, as OWASP's sheet on storing passwords has it
NAME = re.compile(r"[\w.@+-]{1,100}")
ELSEWHERE = "-"
HEAD = "# users of SpeechLab's pages: name:role:hash; written by `speechlab user`\n"


@dataclass(frozen=True)
class User:
    """Someone who may come in.

    Attributes:
        name: As they log in, or as the OAuth service calls them.
        role: ``reader`` looks, ``operator`` also launches, stops, tags and deletes.
        hash: Of the password; :data:`ELSEWHERE` is none.
    """

    name: str
    role: Role
    hash: str = ELSEWHERE


class Users:
    """The users of a file.

    Args:
        path: The file; none is :func:`usual`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else usual()
        self._mark: tuple[int, ...] = ()
        self._known: dict[str, User] = {}

    def all(self) -> dict[str, User]:
        """All of them by name, as the file has them now.

        Raises:
            InputError: if the file is not there, others may read it, or a line cannot be understood.
        """
        try:
            stat = os.stat(self.path)
        except OSError:
            do = "make one: speechlab user NAME --role operator"
            raise InputError("There is no file of users.", got=str(self.path), expected="name:role:hash, a line each", do=do) from None
        if stat.st_mode & 0o077:
            raise InputError("Others can read the file of users.", got=oct(stat.st_mode & 0o777), do=f"chmod 600 {self.path}")
        mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if mark != self._mark:
            lines = enumerate(self.path.read_text("utf-8").splitlines(), 1)
            found = [_read(line, f"{self.path}:{n}") for n, line in lines if line.strip() and not line.startswith("#")]
            self._known, self._mark = {user.name: user for user in found}, mark
        return self._known

    def get(self, name: str) -> User | None:
        """Who has that name; none where the file cannot be read, which lets nobody in."""
        try:
            return self.all().get(name)
        except (InputError, OSError, UnicodeDecodeError):
            return None

    def check(self, name: str, password: str) -> bool:
        """Whether a user of that name has that password; takes as long where there is none of that name."""
        user = self.get(name)
        known = user is not None and user.hash != ELSEWHERE
        same = _matches(user.hash if user is not None and known else _nobody(), password[: LONGEST + 1])
        return known and same

    def put(self, name: str, role: str, password: str | None) -> None:
        """Add a user or change one.

        Args:
            name: Letters, digits and ``.@+-_``.
            role: One of :data:`ROLES`.
            password: None for someone whom an OAuth service knows.

        Raises:
            InputError: if one of them cannot be taken.
        """
        if not NAME.fullmatch(name):
            raise InputError("A user cannot have this name.", got=name[:120], expected="letters, digits and .@+-_, 100 at most")
        if password is not None and not SHORTEST <= len(password) <= LONGEST:
            wanted = f"{SHORTEST} to {LONGEST} characters; several words that go together for you alone do well"
            raise InputError("The password cannot be taken.", got=f"{len(password)} characters", expected=wanted)
        made = User(name, _role(role), ELSEWHERE if password is None else hashed(password))
        self._write({**(self.all() if self.path.exists() else {}), name: made})

    def remove(self, name: str) -> None:
        """Take a user out, who is out at once.

        Raises:
            InputError: if there is none of that name.
        """
        known = self.all()
        if name not in known:
            raise InputError("There is no such user.", got=name[:120], do=did_you_mean(name, known))
        self._write({n: user for n, user in known.items() if n != name})

    def _write(self, users: dict[str, User]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{user.name}:{user.role}:{user.hash}\n" for user in users.values())
        runs.write_atomic(self.path, (HEAD + lines).encode(), mode=0o600)
        self._mark = ()

    def secret(self) -> str:
        """What signs cookies and sessions: kept in a file beside the users', so that who is logged in stays so when the server starts anew.

        ``SPEECHLAB_COOKIE_SECRET`` goes before the file.

        Raises:
            InputError: if it is too short, or others may read the file.
        """
        path = self.path.with_name(self.path.name + ".secret")
        given = os.environ.get("SPEECHLAB_COOKIE_SECRET", "")
        if not given and not path.exists():
            runs.write_atomic(path, secrets.token_urlsafe(48).encode(), mode=0o600)
        if not given and path.stat().st_mode & 0o077:
            raise InputError("Others can read the secret that signs cookies.", got=str(path), do=f"rm {path}; a new one logs everybody out")
        found = given or path.read_text("utf-8").strip()
        if len(found) < 32:
            where = "SPEECHLAB_COOKIE_SECRET" if given else str(path)
            raise InputError("The secret that signs cookies is too short.", got=where, expected="32 characters or more")
        return found


def usual() -> Path:
    """Where the users are where no other file is named: the user's own configuration."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "speechlab" / "users"


def hashed(password: str, cost: tuple[int, int, int] | None = None) -> str:
    """A password as it is kept: ``scrypt$log2 N$r$p$salt$key``.

    Args:
        password: Of any length.
        cost: None is :data:`COST`.
    """
    salt = secrets.token_bytes(16)
    log_n, r, p = cost = cost or COST
    return f"scrypt${log_n}${r}${p}${base64.b64encode(salt).decode()}${base64.b64encode(_derived(password, salt, cost)).decode()}"


def _derived(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    log_n, r, p = cost
    text = unicodedata.normalize("NFKC", password).encode()  # as SP 800-63B asks, so that another keyboard gives the same
    return hashlib.scrypt(text, salt=salt, n=1 << log_n, r=r, p=p, maxmem=2 * 128 * r * ((1 << log_n) + p), dklen=32)


def _matches(known: str, password: str) -> bool:
    _, log_n, r, p, salt, key = known.split("$")
    found = _derived(password, base64.b64decode(salt), (int(log_n), int(r), int(p)))
    return hmac.compare_digest(found, base64.b64decode(key))


_NOBODY: list[str] = []


def _nobody() -> str:
    """A hash that no password gives."""
    if not _NOBODY:
        _NOBODY.append(hashed(secrets.token_urlsafe(32)))
    return _NOBODY[0]


def _role(text: str) -> Role:
    for role in ROLES:
        if role == text:
            return role
    raise InputError("There is no such role.", got=text[:40], do=did_you_mean(text, ROLES))


def _read(line: str, where: str) -> User:
    name, _, rest = line.strip().partition(":")
    role, _, hash = rest.partition(":")
    try:
        if not NAME.fullmatch(name):
            raise ValueError("the name")
        if hash != ELSEWHERE:
            kind, log_n, r, p, salt, key = hash.split("$")
            if kind != "scrypt" or not 10 <= int(log_n) <= 20 or not (1 <= int(r) <= 32 and 1 <= int(p) <= 16):
                raise ValueError("the cost")
            base64.b64decode(salt, validate=True)
            base64.b64decode(key, validate=True)
    except (ValueError, binascii.Error):
        do = f"set it again: speechlab user {name if NAME.fullmatch(name) else 'NAME'}"
        raise InputError("A line of the file of users cannot be read.", got=where, expected="name:role:hash", do=do) from None
    return User(name, _role(role), hash)
