"""Tags of runs: what is kept, what is taken, where they show."""

from __future__ import annotations

import pytest
from browser import EVIL, make_run
from typer.testing import CliRunner

from speechlab import catalogue, cli, experiments, tags
from speechlab.catalogue import Catalogue
from speechlab.errors import InputError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "PERIOD", 0.0)
    return make_run(tmp_path, steps=3, epochs=1, name="one")


def test_tags_are_kept_in_the_run_s_directory(run):
    assert tags.read(run.path) == ()
    tags.write(run, tags.parsed(["Baseline, v2  new", "baseline,,"]))
    assert tags.read(run.path) == ("Baseline", "v2 new")
    assert (run.path / "tags.txt").read_text() == "Baseline\nv2 new\n"
    assert [p.name for p in run.path.iterdir() if "tmp" in p.name] == []
    tags.write(run, ())
    assert tags.read(run.path) == ()


@pytest.mark.parametrize("word", [*EVIL, "x" * 33, "a/b", "a\x00b", "a\u202eb", "#a", "=1+1", "a:b"])
def test_what_is_no_tag_is_refused_and_not_read(run, word):
    with pytest.raises(InputError, match="letters, digits"):
        tags.parsed([word])
    (run.path / "tags.txt").write_text(f"good\n{word}\n")
    assert tags.read(run.path) == ("good",)


def test_a_run_has_a_few_tags_and_a_link_holds_none(run, tmp_path):
    with pytest.raises(InputError, match="12 at most"):
        tags.parsed([str(i) for i in range(13)])
    (tmp_path / "secret").write_text("secret\n")
    (run.path / "tags.txt").symlink_to(tmp_path / "secret")
    assert tags.read(run.path) == ()
    tags.write(run, ("mine",))
    assert (tmp_path / "secret").read_text() == "secret\n" and tags.read(run.path) == ("mine",)


def test_they_are_found_by_catalogue_and_table(run):
    known = Catalogue(run.path.parent)
    assert known.look()[0].tags == ()
    tags.write(run, ("baseline", "v2 new"))
    (entry,) = known.look()
    assert entry.tags == ("baseline", "v2 new")
    assert entry.holds("#base one") and entry.holds("NEW") and not entry.holds("#v3")
    rows = experiments.table(run.path.parent)
    assert list(experiments.select(rows, where=["tag=Baseline"]).id) == ["one"]
    assert len(experiments.select(rows, where=["tag=base"])) == 0


def test_the_command_adds_shows_and_takes_off(run, monkeypatch):
    monkeypatch.setattr("speechlab.config.home", lambda: run.path.parent)
    (run.path.parent / "reports").symlink_to(run.path.parent)

    def shell(*words: str) -> str:
        done = CliRunner().invoke(cli.app, ["tag", "one", *words])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.output

    assert shell() == "one: no tag\n"
    assert shell("baseline", "v2") == "one: baseline, v2\n"
    assert shell("--remove", "Baseline", "best") == "one: v2, best\n" and tags.read(run.path) == ("v2", "best")
    with pytest.raises(InputError, match="cannot be taken"):
        shell("<b>")
    assert tags.read(run.path) == ("v2", "best")
