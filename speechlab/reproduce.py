"""A run made again from its record, and whether the same came out.

The rerun uses the code of the run's commit, in a worktree of its own, with the packages of that commit's lock, on clips whose
samples are verified first, with as many threads and as much audio in a pass as the run had. :mod:`speechlab.verdict` then compares.

Not covered: runs that were stopped, a rerun that was interrupted, clusters (the rerun is on this machine).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from speechlab import commit, evaluation, provenance, verdict, versions
from speechlab.corpora.base import lines_sha256
from speechlab.errors import InputError
from speechlab.markup import CSS, PAGE, Html, definitions_html, table_html, time_html
from speechlab.runs import Run, write_atomic
from speechlab.tracking import uri_for
from speechlab.utterances import some
from speechlab.verdict import Verdict


def reproduce(run: Run, say: Callable[[str], None] = print) -> tuple[Run, Verdict]:
    """Train a run again from its record, and compare.

    Args:
        run: A finished run of this repository.
        say: Told what is happening, a line at a time.

    Returns:
        The new run, in ``reproductions/`` beside the original, and the verdict, which it keeps as ``reproduction.json``.

    Raises:
        InputError: if the run is not finished, has no commit, its commit, packages or clips cannot be had, or the
            training of the commit fails.
    """
    sha, patch = _checked(run)
    folder = run.path.parent / "reproductions" / run.id
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    say(f"checking out {sha[:12]}" + (" with its patch" if patch else ""))
    if verdict.LOST in verdict.code(run.provenance["code"]):
        say("the run had changes to its code that were not kept: only a bit-exact verdict can say that they did not matter")
    with commit.checkout(here, sha, patch) as tree:
        say("looking at the environment")
        python, other = commit.interpreter(tree, here.parent / "requirements.lock")
        say(
            f"packages of the run's lock, in {python.parent.parent}"
            if other
            else "packages: the lock is the same, so those of this process"
        )
        child = _Child(tree, python, run)
        say("verifying the clips")
        _verify(run, child, folder)
        before = set(folder.glob("*/config.yaml"))
        say("training")
        child.speechlab("train", "--config", str(run.path / "config.yaml"), *child.settings, "--set", f"cluster.storage={_yaml(folder)}")
        (made,) = set(folder.glob("*/config.yaml")) - before
        again = Run(made.parent)
        found = verdict.compare(run, again)
        if found.first_step is not None and _evaluated(run):
            say("the weights differ; evaluating them")
            child.speechlab("evaluate", str(again.path), "--conditions", "clean")
            found = verdict.compare(run, again)
    kept = {"original": {"id": run.id, "path": str(run.path)}, "again": {"id": again.id, "path": str(again.path)}, **asdict(found)}
    write_atomic(again.path / "reproduction.json", (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode())
    return again, found


class _Child:
    """Commands of a checkout, in processes of their own whose output is this one's."""

    def __init__(self, tree: Path, python: Path, run: Run) -> None:
        self.tree, self.python = tree, python
        recorded = run.provenance.get("execution", {}).get("environment", {})
        count = verdict.threads(run)
        self.env = {**os.environ, **{k: v for k, v in recorded.items() if v is not None}, "PYTHONPATH": str(tree)}
        self.env |= {"OMP_NUM_THREADS": str(count)} if count else {}
        self.settings = [word for item in _settings(run) for word in ("--set", item)]

    def speechlab(self, *words: str) -> None:
        """Raises InputError if the command fails; it has said why."""
        self.call("-m", "speechlab", *words, what=f"speechlab {words[0]}")

    def call(self, *words: str, what: str) -> None:
        with subprocess.Popen([str(self.python), *words], cwd=self.tree, env=self.env) as process:
            try:
                status = process.wait()
            except KeyboardInterrupt:  # the terminal has told the child too, which saves and ends
                process.wait()
                raise
        if status:
            raise InputError(f"{what} of the run's commit failed.", got=f"exit status {status}", do="see what it said above")


def _checked(run: Run) -> tuple[str, bytes]:
    """The commit and the patch of a run that can be made again."""
    run.need_finished()
    row = run.provenance.get("code", {})
    if not row.get("git_sha"):
        raise InputError("The run does not say which commit made it.", got=run.id, expected="a run made in a git checkout")
    if not row.get("patch"):
        return row["git_sha"], b""
    path = run.path / row["patch"]
    patch = path.read_bytes() if path.is_file() else b""
    if (got := hashlib.sha256(patch).hexdigest()) != row["patch_sha256"]:
        raise InputError("The run's code.patch is not the one of its record.", got=got, expected=row["patch_sha256"])
    return row["git_sha"], patch


def _settings(run: Run) -> Iterator[str]:
    """Values in place of the frozen config's: where things lie as seen from here, and the memory that the run found."""
    changed = run.path / "overrides.txt"
    yield from changed.read_text("utf-8").splitlines() if changed.exists() else ()
    experiment = run.config
    for name in ("corpus.root", "corpus.decisions", "evaluation.noise"):
        section, key = name.split(".")
        if (value := getattr(getattr(experiment, section), key)) is not None:
            yield f"{name}={_yaml(Path(value).expanduser().absolute())}"
    if (limit := next(e for e in run.events() if e["kind"] == "start").get("device_seconds")) is not None:
        yield f"cluster.device_seconds={limit!r}"
    if experiment.cluster.address is not None:  # other machines do not have the worktree
        yield "cluster.address=null"
    if versions.is_name(experiment.model.weights) and experiment.tracking.uri is None:
        yield f"tracking.uri={json.dumps(uri_for(run))}"  # where the weights are, if the cache has lost them
    yield "tracking.enabled=false"


def _yaml(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _verify(run: Run, child: _Child, folder: Path) -> None:
    """Raises InputError with the list of what differs, unless all clips are those that the run was trained on."""
    out = folder / "clips.json"
    script = str(Path(__file__).with_name("verify.py"))
    corpus = [word for word in child.settings if word.startswith("corpus.")]
    child.call("-P", script, str(run.path / "config.yaml"), str(out), *corpus, what="The corpus")
    found = json.loads(out.read_text("utf-8"))
    out.unlink()
    if found["problem"]:
        raise InputError("The corpus that the run was trained on cannot be had.", got=found["problem"], expected=run.id)
    if found["broken"]:
        first = next(iter(found["broken"].values()))
        got = f"{some(list(found['broken']))}\n{first}"
        raise InputError(
            f"{len(found['broken'])} clips are not what the run was trained on.", got=got, expected="the samples of the manifest"
        )
    wanted = run.provenance["data"]["manifest_sha256"]
    got = lines_sha256(found["manifest"])
    if got == wanted:
        return
    kept = provenance.clips(run)
    lines = [f"manifest {got[:12]} of {len(found['manifest'])} clips"] if kept is None else list(verdict.differing(kept, found["manifest"]))
    raise InputError(
        "The corpus is not the one that the run was trained on.",
        got="; ".join(lines),
        expected=f"manifest {wanted[:12]}",
        do="restore the corpus; its splits may have moved",
    )


def _evaluated(run: Run) -> bool:
    try:
        evaluation.kept(str(run.path))
    except InputError:
        return False
    return True


# -- the page -----------------------------------------------------------------------------------


SPREAD = "Trainings that differ in their seeds alone lie 0.1 to 0.2 points of WER apart (eight of QuartzNet on LibriSpeech)."
PAGE_CSS = "h2 { font: 600 1.1em system-ui, sans-serif; margin: 1.4em 0 .2em; }"
LONG_CSS = ".speechlab .long td + td { overflow-wrap: anywhere; }"


def page(original: Run, again: Run, found: Verdict) -> Path:
    """Write the verdict as a page, ``reproduction.html`` in the new run.

    Args:
        original: The run.
        again: The rerun.
        found: Of the two.
    """
    lacking = provenance.missing(provenance.record(original))
    body = Html("").join(
        [
            definitions_html({**about(original, again, found), **rates(found)}),
            Html("<h2>Weights after a step</h2>{}").format(table_html(chain(original, again))),
            Html("<h2>What differs between the two records</h2>{}").format(differing_html(found)),
            Html("<h2>What the original did not record</h2><p>{}</p>").format(", ".join(line.removesuffix(": missing") for line in lacking))
            if lacking
            else "",
        ]
    )
    title = f"{original.id} made again: {found.level}"
    path = again.path / "reproduction.html"
    write_atomic(
        path, PAGE.format(title=title, css=Html(CSS + PAGE_CSS), about=found.text, legend="", body=body).encode("utf-8", "replace")
    )
    return path


def about(original: Run, again: Run, found: Verdict) -> dict[str, Any]:
    """What was compared and the first step that differs, by name, for :func:`speechlab.markup.definitions_html`."""
    said = {"original": original.id, "rerun": again.id, "steps compared": found.steps, "digests compared": found.digests}
    return said | {"first step that differs": found.first_step}


def rates(found: Verdict) -> dict[str, str]:
    """The difference in WER beside what counts as equal and what seeds alone do, by name."""
    if found.points is None:
        return {"WER": "not measured" + (": the weights are equal" if found.first_step is None else "")}
    said = {"WER, rerun minus original": f"{found.points:+.2f} points"}
    if found.interval:
        said["interval"] = (
            f"[{found.interval.low:+.2f}, {found.interval.high:+.2f}], {100 * found.interval.level:g} %, {found.interval.scope}"
        )
    return said | {"counts as equal": f"within {found.margin:g} points either way", "seeds alone": SPREAD}


def chain(original: Run, again: Run) -> pd.DataFrame:
    """The digests of the original's weights beside the rerun's, a row a checkpoint."""
    ours, theirs = (provenance.digests(run.events()) for run in (original, again))
    rows = [(str(step), digest[:12], theirs.get(step, "–")[:12], _alike(digest, theirs.get(step))) for step, digest in ours.items()]
    return pd.DataFrame(rows, columns=["step", "original", "rerun", ""])


def differing_html(found: Verdict) -> Html:
    """What differs between the two records, a row each."""
    if not found.changes:
        return Html("<p>Nothing that was recorded of both.</p>")
    rows = pd.DataFrame([(c.what, str(c.original), str(c.again)) for c in found.changes], columns=["what", "original", "rerun"])
    return Html('<style>{}</style><div class="long">{}</div>').format(Html(LONG_CSS), table_html(rows))


def record_html(run: Run) -> Html:
    """The whole record of a run but for its chain of digests: the seven rows, then how it ran and what it cost."""
    whole = provenance.record(run)
    weights = {name: value for name, value in whole["weights"].items() if name != "chain"}
    when = {k: None if t is None else time_html(t) for k, t in whole["time"].items()}
    cost = {name: round(value, 1) if isinstance(value, float) else value for name, value in whole["cost"].items()}
    rows = {name: whole.get(name, {}) for name in provenance.ROWS} | {"weights": weights, "execution": whole.get("execution", {})}
    rows["besides"] = {name: whole.get(name) for name in ("normaliser", "command", "state")} | {"time": when, "cost": cost}
    return Html("").join(Html("<h3>{}</h3>{}").format(name, definitions_html(values)) for name, values in rows.items())


def _alike(a: str, b: str | None) -> str:
    return "not in the rerun" if b is None else "equal" if a == b else "differ"
