"""Notebooks headless, and executed notebooks as one HTML file that needs nothing else.

papermill executes, nbconvert renders with the template in ``templates/report``. Cell tags that matter:

====================  =========================================================================
parameters            papermill's; hidden in the report, as is what papermill injects after it
setup                 loads JavaScript; only the first notebook's output of it is kept
live                  a live view, of no use in a file: its output is left out
====================  =========================================================================

Raw HTML comes from two sources only: markdown cells, which are the repository's own, and ``text/html``
outputs, which :mod:`speechlab.markup` and :mod:`speechlab.plots` escape. Markdown, LaTeX and Mermaid
*outputs* are dropped for their plain text. Not covered: ipywidgets (blank offline) and mathematics in TeX.
"""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechlab import config as configs
from speechlab import evaluation, ledger, overview
from speechlab.errors import InputError, did_you_mean
from speechlab.markup import Html, framed
from speechlab.runs import Run, write_atomic
from speechlab.units import Seconds, clock, moment

TEMPLATES = Path(__file__).parent / "templates"
HIDDEN = {"parameters", "injected-parameters"}
UNSAFE = ("text/markdown", "text/latex", "text/vnd.mermaid")


NOTEBOOKS = ("03_train.ipynb", "04_evaluate.ipynb", "05_errors.ipynb")
PRETRAINING = NOTEBOOKS[:1]  # writes no text: nothing to evaluate
FULL = re.compile(r"100%\|█+\| \d+/\d+ \[")  # a progress bar that came to its end
IOPUB = 60  # seconds for a cell's last output to arrive; papermill's four are too few on a machine that does other things
STOP_GRACE: Seconds = 90.0  # for a driver to save and end when the report is given up


class NotebookError(RuntimeError):
    """A cell raised: the message names the notebook, the cell's source and the exception."""


def make(run: Run, progress: bool = True) -> Path:
    """The main job: train, evaluate, report, by way of three notebooks; of a pretraining the first alone.

    A run that has finished is not trained again. If the notebooks are given up, by Ctrl-C or an
    error, training is stopped with a checkpoint, and the run can go on.

    Args:
        run: New, interrupted or finished.
        progress: Whether to show progress bars.

    Returns:
        The HTML file, ``report.html`` in the run.

    Raises:
        NotebookError: if a cell raises.
        KeyboardInterrupt: after Ctrl-C, when the workers are gone.
    """
    folder = configs.home() / "notebooks"
    names = NOTEBOOKS if run.config.transcribes else PRETRAINING
    try:
        done = [execute(folder / name, run.path / name, {"run": run.path}, cwd=configs.home(), progress=progress) for name in names]
    except BaseException as e:
        deadline = time.monotonic() + STOP_GRACE
        while run.locked() and time.monotonic() < deadline:
            run.stop()
            time.sleep(0.2)
        if isinstance(e, NotebookError) and "KeyboardInterrupt" in str(e):
            raise KeyboardInterrupt from None
        raise
    lead = overview.short(ledger.read(run.path))
    return html(done, run.path / "report.html", f"{run.config.name}: {run.config.question}", lead)


def costs(run: Run) -> list[str]:
    """What the run cost in time, a line a part, as its events and tables say."""
    events = run.events()
    starts = [e["time"] for e in events if e["kind"] == "start"]
    steps = run.steps()
    clips = int(steps.clips.sum()) if len(steps) else 0
    seconds = float(steps.step_seconds.sum()) if len(steps) else 0.0
    validation = sum(e["seconds"] for e in events if e["kind"] == "validation")
    decoding = sum(e.rows.seconds.sum() + e.rows.latency.sum() for e in evaluation.load(run.path / "evaluations"))
    lines = [f"training steps  {clock(seconds)}, {clips / seconds:.1f} clips a second" if seconds else "training steps  none"]
    lines.append(f"validation      {clock(validation)}")
    if starts:
        lines.append(
            f"start-up        {clock(starts[0] - (run.path / 'config.yaml').stat().st_mtime)} from the run's making to its first step"
        )
    lines.append(f"decoding        {clock(float(decoding))} for all evaluations")
    return lines


def execute(
    notebook: str | Path, output: str | Path, parameters: Mapping[str, Any], cwd: str | Path | None = None, progress: bool = True
) -> Path:
    """Execute a notebook with papermill.

    papermill would run any parameter name as code and only warn about an unknown one, so names are
    held against the notebook's own parameters cell first.

    Args:
        notebook: The notebook to run.
        output: Where the executed copy goes; it is written cell by cell, also when one fails.
        parameters: Values by name; paths become text.
        cwd: Working directory of the kernel; none is this process's own.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The output's path.

    Raises:
        InputError: if the notebook does not exist, cannot be read, or a parameter is not one of its own.
        NotebookError: if a cell raises.
    """
    import papermill
    from jupyter_client.manager import KernelManager
    from papermill.exceptions import PapermillExecutionError

    notebook, output = Path(notebook), Path(output)
    if not notebook.is_file():
        raise InputError("The notebook does not exist.", got=str(notebook), expected="an .ipynb file")
    _check_names(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    KernelManager.transport_encryption.default_value = "auto"  # else the kernel talks in the clear, and warns
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            parameters={k: str(v) if isinstance(v, Path) else v for k, v in parameters.items()},
            kernel_name="python3",
            cwd=None if cwd is None else str(cwd),
            progress_bar=progress,
            start_timeout=120,
            iopub_timeout=IOPUB,
        )
    except PapermillExecutionError as e:
        raise NotebookError(
            f"{notebook}: cell {e.cell_index + 1} failed with {e.ename}: {e.evalue}\n"
            f"--- its source\n{e.source}\n--- the traceback and all before it are in {output}"
        ) from None
    return output


def _check_names(notebook: Path, parameters: Mapping[str, Any]) -> None:
    known = _parameters(notebook)
    for name in parameters:
        if not name.isidentifier() or name not in known:
            raise InputError(
                f"{notebook.name} has no such parameter.",
                got=name,
                expected="a name from its parameters cell",
                do=did_you_mean(name, known) if known else "the notebook takes no parameters",
            )


def _parameters(notebook: Path) -> list[str]:
    """The names that a notebook's parameters cell assigns; papermill's own reader leaves lines with two equals signs out."""
    import nbformat

    try:
        found = nbformat.read(notebook, as_version=4)
        nbformat.validate(found)
        _ = found.metadata.kernelspec.name
        cells = [cell.source for cell in found.cells if "parameters" in cell.metadata.get("tags", [])]
        lines = ast.parse(cells[0]).body if cells else []
    except Exception as e:  # nbformat and ast raise several kinds for a file that is no notebook
        expected = "a notebook that names its kernel (kernelspec python3)"
        raise InputError(f"{notebook} cannot be read.", got=f"{type(e).__name__}: {e}", expected=expected) from None
    targets = [
        line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
        for line in lines
        if isinstance(line, ast.AnnAssign | ast.Assign)
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


# -- the page ------------------------------------------------------------------------------------


def html(notebooks: Sequence[str | Path], output: str | Path, title: str, lead: Html | None = None) -> Path:
    """Merge executed notebooks into one self-contained page that works offline from disk.

    Args:
        notebooks: Executed notebooks, in reading order.
        output: The HTML file to write.
        title: The page's title, as plain text.
        lead: What stands below it, before the contents.

    Returns:
        The output's path.

    Raises:
        InputError: if a notebook is missing or is not one.
    """
    from nbconvert import HTMLExporter

    merged = merge([Path(n) for n in notebooks])
    exporter = HTMLExporter(
        template_name="report",
        extra_template_basedirs=[str(TEMPLATES)],
        embed_images=True,
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    about = {"title": title, "lead": framed(lead) if lead else "", "contents": contents(merged), "made": moment(time.time())}
    resources = {**about, "metadata": {"name": "report"}}
    page, _ = exporter.from_notebook_node(merged, resources=resources)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(output, inline_styles(page).encode())
    return output


def merge(notebooks: Sequence[Path]) -> Any:
    """One notebook of several executed ones, with what the report must not show left out.

    Raises:
        InputError: as for :func:`html`.
    """
    import nbformat

    cells: list[Any] = []
    merged: Any = None
    for n, path in enumerate(notebooks):
        try:
            notebook = nbformat.read(path, as_version=4)
        except FileNotFoundError:
            raise InputError("The notebook does not exist.", got=str(path), expected="an executed .ipynb file") from None
        except Exception as e:  # nbformat raises several kinds, none of them documented
            raise InputError("The notebook cannot be read.", got=f"{path}: {e}", expected="an executed .ipynb file") from None
        merged = merged or notebook
        for i, cell in enumerate(notebook.cells):
            tags = set(cell.metadata.get("tags", []))
            if tags & HIDDEN:
                continue
            cell.id = f"part{n + 1}-{i + 1}"
            if cell.cell_type == "code":
                cell.outputs = [] if "live" in tags or (n and "setup" in tags) else _inert(cell.outputs)
            cells.append(cell)
    if merged is None:
        raise InputError("A report needs a notebook.", got="none", expected="one executed notebook or more")
    merged.cells = cells
    merged.metadata.pop("widgets", None)  # they would be loaded from a CDN
    return merged


def _inert(outputs: list[Any]) -> list[Any]:
    for output in outputs:
        if "data" in output:
            output.data = {kind: data for kind, data in output.data.items() if kind not in UNSAFE}
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
            kept[-1].text += output.text
        elif output.get("data", True):
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":  # of a progress bar, what a terminal would show at its end
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
            output.text = "\n".join(line for line in lines if not FULL.search(line))
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def contents(notebook: Any) -> list[dict[str, Any]]:
    """The table of contents: headings of the first two levels, as plain text, with the cells they stand in."""
    return [
        {"level": len(marks), "text": re.sub(r"[`*_]|\[([^]]*)\]\([^)]*\)", r"\1", words).strip(), "cell": cell.id}
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for marks, words in re.findall(r"^(#{1,2}) +(.+?) *#*$", re.sub(r"```.*?```", "", cell.source, flags=re.S), flags=re.M)
    ]


def inline_styles(page: str) -> str:
    """Put Panel's own style sheets, which it links from its CDN even when told to inline, into the page."""
    import panel

    dist = Path(panel.__file__).parent / "dist"
    link = re.compile(
        r'\{"type":"object","name":"ImportedStyleSheet","id":"([^"]+)","attributes":\{"url":"'
        + re.escape(f"https://cdn.holoviz.org/panel/{panel.__version__}/dist/")
        + r'([^"?]+)(?:\?[^"]*)?"\}\}'
    )

    def sheet(match: re.Match[str]) -> str:
        css = json.dumps((dist / match.group(2)).read_text("utf-8")).replace("</", "<\\/")
        return f'{{"type":"object","name":"InlineStyleSheet","id":"{match.group(1)}","attributes":{{"css":{css}}}}}'

    return link.sub(sheet, page)
