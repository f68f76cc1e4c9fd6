"""The file of users: what is kept, what lets in, what others may not read."""

from __future__ import annotations

import os
import stat

import pytest
from typer.testing import CliRunner

from speechlab import cli, users
from speechlab.errors import InputError
from speechlab.users import COST, Users

WORDS = "correct horse battery"


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Hashes that take no time; the cost itself is asserted below."""
    monkeypatch.setattr(users, "COST", (10, 8, 1))
    monkeypatch.setattr(users, "_NOBODY", [])


@pytest.fixture
def known(tmp_path):
    found = Users(tmp_path / "conf" / "users")
    found.put("ann", "operator", WORDS)
    found.put("bob@example.org", "reader", None)
    return found


def mode(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_only_the_right_password_of_a_user_lets_in(known):
    assert known.check("ann", WORDS)
    for name, password in (("ann", WORDS + " "), ("ann", ""), ("ann", WORDS.upper()), ("nobody", WORDS), ("", ""), ("Ann", WORDS)):
        assert not known.check(name, password), (name, password)
    assert not known.check("bob@example.org", "") and not known.check("bob@example.org", "-"), "who comes by OAuth has no password"


def test_a_password_is_the_same_from_another_keyboard(known):
    known.put("zoë", "reader", "cafe\u0301 au lait")
    assert known.check("zoë", "café au lait")


def test_no_password_stands_in_the_file_and_only_its_owner_reads_it(known):
    text = known.path.read_text()
    assert WORDS not in text
    assert [line.split(":")[:2] for line in text.splitlines()[1:]] == [["ann", "operator"], ["bob@example.org", "reader"]]
    assert mode(known.path) == 0o600
    known.put("cy", "reader", WORDS)
    first, _, third = known.path.read_text().splitlines()[1:]
    assert first.split(":")[2] != third.split(":")[2], "a salt each"
    known.path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        Users(known.path).all()
    assert Users(known.path).get("ann") is None and not Users(known.path).check("ann", WORDS)


def test_what_changes_in_the_file_holds_at_once(known):
    other = Users(known.path)
    other.put("ann", "reader", WORDS + "!")
    assert known.get("ann").role == "reader" and known.check("ann", WORDS + "!") and not known.check("ann", WORDS)
    other.remove("ann")
    assert known.get("ann") is None and not known.check("ann", WORDS + "!")
    with pytest.raises(InputError, match="no such user"):
        other.remove("ann")
    known.path.unlink()
    assert known.get("bob@example.org") is None
    with pytest.raises(InputError, match="speechlab user NAME"):
        known.all()


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\nroot:operator:-", "<b>", "x" * 101, "#a", "a/b"])
def test_a_name_is_letters_and_a_few_signs(known, name):
    with pytest.raises(InputError, match="cannot have this name"):
        known.put(name, "operator", WORDS)


def test_other_bad_input_says_what_is_wanted(known):
    for password in ("short", "x" * 1025):
        with pytest.raises(InputError, match="10 to 1024 characters"):
            known.put("ann", "operator", password)
    with pytest.raises(InputError, match="operator"):
        known.put("ann", "admin", WORDS)
    for line in ("ann", "ann:operator", "ann:operator:" + WORDS, "ann:root:-", "a b:reader:-", "ann:reader:scrypt$30$8$3$AA==$AA==",
                 "ann:reader:scrypt$15$8$3$!$AA=="):  # fmt: skip
        known.path.write_text(line + "\n")
        with pytest.raises(InputError, match="users:1|no such role"):
            Users(known.path).all()


def test_a_name_that_nobody_has_costs_what_a_wrong_password_does(known, monkeypatch):
    """What a check costs is scrypt's, so it is the same calls with the same cost."""
    known.put("ann", "operator", WORDS)
    known.check("nobody", WORDS)  # makes what it compares with
    derived, costs = users._derived, []
    monkeypatch.setattr(users, "_derived", lambda password, salt, cost: costs.append(cost) or derived(password, salt, cost))
    for name in ("ann", "nobody", "bob@example.org"):
        assert not known.check(name, "a wrong one")
    assert costs == [users.COST] * 3


def test_the_cost_is_that_of_the_sheet():
    log_n, r, p = COST
    assert 128 * r * 2**log_n == 32 * 2**20 and p == 3


def test_the_secret_is_made_once_and_kept(known, monkeypatch):
    found = known.secret()
    assert len(found) >= 64 and Users(known.path).secret() == found
    path = known.path.with_name("users.secret")
    assert mode(path) == 0o600
    path.chmod(0o644)
    with pytest.raises(InputError, match="Others can read"):
        known.secret()
    monkeypatch.setenv("SPEECHLAB_COOKIE_SECRET", "x" * 40)
    assert known.secret() == "x" * 40
    monkeypatch.setenv("SPEECHLAB_COOKIE_SECRET", "x" * 20)
    with pytest.raises(InputError, match="too short"):
        known.secret()


def test_the_command_line_adds_changes_lists_and_removes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def shell(*words: str, given: str = "") -> str:
        done = CliRunner().invoke(cli.app, words, input=given)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    assert "ann comes in as operator" in shell("user", "ann", "--role", "operator", given=WORDS + "\n")
    shell("user", "bob", "--no-password")
    found = Users(tmp_path / "speechlab" / "users")
    assert found.check("ann", WORDS) and found.get("ann").role == "operator"
    assert shell("user") == "ann  operator\nbob  reader  by OAuth alone\n"
    shell("user", "ann", "--remove")
    assert found.get("ann") is None
    with pytest.raises(InputError, match="10 to 1024"):
        shell("user", "ann", given="short\n")
    assert WORDS not in shell("user", "cy", "--users", str(tmp_path / "other"), given=WORDS + "\n")
    assert Users(tmp_path / "other").check("cy", WORDS)
