"""House rules as tests: layers, who may import what, docstrings, file lengths, notebooks, lock."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "speechlab").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# the one module that may know each of these
ONLY_IMPORTER = {
    # one trains, one starts it, one decodes, one prepares, one sends, one serves, one searches
    "ray": {"cluster", "front", "head", "infer", "ingest", "rayjobs", "serving", "tune"},
    "mlflow": {"tracking", "versions"},  # one follows runs, one finds weights
    "panel": {
        "app",
        "board",
        "contrast",
        "explorer",
        "form",
        "helm",
        "launch",
        "listen",
        "login",
        "machine",
        "mixer",
        "players",
        "playground",
        "pulse",
        "review",
        "shelf",
        "trials",
    }
    | {"report", "style"},  # where its style sheets lie, and its script
    "holoviews": {"board", "explorer", "findings", "listen", "mixer", "trials"}  # the boards, and what lies in plots/
    | {"errors", "fusion", "measured", "pairs", "rates", "side", "sound", "style", "training"},
    "bokeh": {"board", "door", "errors", "listen", "login", "style"},
    "papermill": {"report"},
    "nbconvert": {"report"},
    "transformers": {"features", "whisper", "wav2vec2", "ctranslate2", "weights"},
    "peft": {"adapters"},
    "sentencepiece": {"ctc"},
    "lhotse": {"base", "conditioning", "librispeech", "prompts", "shards"},  # all of them in corpora/
    "soundfile": {"audio", "effects", "formats"},  # effects: GSM, which PyAV cannot encode
    "av": {"audio", "effects", "formats"},  # effects: codecs without files
    "soxr": {"audio", "effects"},
    "pyroomacoustics": {"effects"},
    "praatio": {"coraal"},
    "kaldialign": {"scoring"},
    "flashlight": {"beam", "ngram"},
    "kaldingram": {"ngram"},
    "usearch": {"likeness"},
    "PIL": {"thumbnails"},
    "markdown_it": {"markup"},
    "typer": {"cli", "cli_corpus", "cli_registry", "cli_reproduce", "cli_runs", "cli_score", "cli_serve", "cli_transcribe", "cli_users"},
    "pydantic": {"config", "routes"},
    "starlette": {"front"},
    "jsonschema": {"provenance"},
}
# longer than about 400 lines, and why
LONG: dict[str, str] = {
    "config.py": "all that an experiment is stands in one place, validated in one place",
    "fetch.py": "four kinds of places with one behaviour; apart they would repeat it",
    "wav2vec2.py": "both objectives share one encoder, and what a folder may hold is checked where it is read",
    "weights.py": "every place that weights come from behaves alike",
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", ONLY_IMPORTER)
def test_one_module_knows_each_large_library(package):
    knowing = {p.stem for p in MODULES if package in imported(p)}
    assert knowing <= ONLY_IMPORTER[package]
    assert knowing, f"nobody imports {package}: take it off the list and out of pyproject.toml"


def test_the_layers_hold():
    done = subprocess.run([str(Path(sys.executable).parent / "lint-imports")], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_module_stands_in_a_layer():
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    here = {"speechlab." + p.stem for p in (ROOT / "speechlab").glob("*.py")} - {"speechlab.__init__", "speechlab.__main__"}
    here |= {"speechlab." + p.parent.name for p in (ROOT / "speechlab").glob("*/__init__.py")}
    assert here <= named


def test_importing_the_package_is_light():
    heavy = ["torch", "ray", "mlflow", "panel", "transformers", "lhotse", "pandas"]
    code = f"import speechlab, speechlab.config, speechlab.cli, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    # runs.py gives tables, so the command line loads pandas; nothing heavier
    assert ast.literal_eval(done.stdout) in ([], ["pandas"])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_are_documented_and_short(path):
    source = path.read_text("utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "a module says what is notable and what is not covered"
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and not n.name.startswith("_")]
    methods = [
        m for n in public if isinstance(n, ast.ClassDef) for m in n.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")
    ]
    assert [n.name for n in public + methods if not ast.get_docstring(n)] == []
    assert len(source.splitlines()) <= 400 or path.name in LONG


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_modules_have_a_test_file(path):
    if path.stem in {"__init__", "__main__", "units"} or path.parent.name in {"corpora", "plots"}:
        return
    shared = {
        "ctranslate2": "weights",
        "decoding": "evaluation",
        "archives": "fetch",
        "effects": "augment",
        "progress": "fetch",
        "markup": "plots",
        "cli_corpus": "check",
        "cli_reproduce": "reproduce",
        "verify": "reproduce",
        "babble": "conditions",
        "inference": "whisper",
        "memory": "budget",
        "ports": "door",
        "cli_registry": "registry",
        "cli_runs": "experiments",
        "cli_serve": "serving",
        "cli_transcribe": "passages",
        "cli_users": "users",
    }
    assert (ROOT / "tests" / f"test_{shared.get(path.stem, path.stem)}.py").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_conduct(path):
    notebook = json.loads(path.read_text("utf-8"))
    cells = notebook["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    lines = [line for c in code for line in "".join(c["source"]).splitlines()]
    assert [c for c in code if c["outputs"] or c["execution_count"]] == [], "outputs are committed"
    assert len(re.findall(r"^# ", prose, re.M)) == 1
    assert "".join(cells[0]["source"]).startswith("# ")
    assert not any(re.match(r"\s*(async )?(def|class) |.*sys\.path|from \S+ import \*", line) for line in lines)
    assert len(cells) <= 30
    assert len(lines) <= 120
    assert not any("papermill" in key for key in notebook["metadata"])

    parameters = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    assert len(parameters) == 1
    for node in ast.parse("".join(parameters[0]["source"])).body:
        assert isinstance(node, ast.AnnAssign), "annotated"
        ast.literal_eval(node.value)  # a literal, nothing derived
    assert all("#" in line for line in "".join(parameters[0]["source"]).splitlines()), "each says what it is"

    names = [
        target.id
        for c in code
        for node in ast.walk(ast.parse("".join(c["source"]), type_comments=False))
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    assert len(names) == len(set(names)), "one cell assigns a name"


def test_the_notebook_rules_can_fail(tmp_path):
    bad = json.loads(NOTEBOOKS[0].read_text("utf-8"))
    bad["cells"][1]["source"] = ["x = 1 + 1"]
    (tmp_path / "bad.ipynb").write_text(json.dumps(bad))
    with pytest.raises(AssertionError):
        test_notebooks_conduct(tmp_path / "bad.ipynb")


def pins() -> dict[str, str]:
    """Package to version, as the lock has them for this Python."""
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)(.*)", (ROOT / "requirements.lock").read_text(), re.M)
    return {name: version for name, version, marker in found if "python_full_version >= '3.12'" not in marker}


def test_lock_pyproject_and_conda_agree():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["dev"]]
    locked = pins()
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        assert name in locked, f"{name} is not locked: make lock"
        assert requirement.specifier.contains(locked[name], prereleases=True), f"{name} {locked[name]}: make lock"
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert "-r requirements.lock" in conda["dependencies"][-1]["pip"]
    assert conda["dependencies"][0] == "python=3.11"
    assert project["requires-python"] == "==3.11.*"


def test_the_lock_has_hashes_and_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    entries = re.split(r"\n(?=[a-z0-9])", lock.strip())
    assert len(entries) > 200
    assert [e.splitlines()[0] for e in entries if "--hash=sha256:" not in e] == []


def test_this_environment_is_the_lock():
    from importlib.metadata import version

    locked = pins()
    assert {name: version(name) for name in ("torch", "ray", "transformers", "panel", "numpy")} == {
        name: locked[name] for name in ("torch", "ray", "transformers", "panel", "numpy")
    }


def test_every_dependency_carries_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    lines = [line for line in text.splitlines() if re.match(r'\s+"[A-Za-z0-9_.\[\],-]+\s*[=<>]', line)]
    assert len(lines) > 30
    assert [line for line in lines if "#" not in line] == []


def tracked() -> list[Path]:
    """Files that git has, or would have."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in done.stdout.splitlines()]


def test_no_file_is_large_and_the_top_level_is_fixed():
    files = tracked()
    assert [p.name for p in files if p.exists() and p.stat().st_size > 2_000_000] == []
    top = {p.relative_to(ROOT).parts[0] for p in files}
    expected = {"notebooks", "speechlab", "configs", "reports", "tests", "environment.yml", "README.md", "pyproject.toml", "Makefile"}
    usual = {"LICENSE", "CHANGELOG.md", ".ci", ".gitignore", ".pre-commit-config.yaml", "requirements.lock"}
    assert expected <= top <= expected | usual
