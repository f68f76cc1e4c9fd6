"""The command line's part for recordings: anything with sound in it to text, subtitles or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speechlab.cli_corpus import out
from speechlab.errors import InputError

app = typer.Typer()


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(help="recordings of any format and length")],
    model: Annotated[str, typer.Option(help="RUN, models:/name@alias, or weights by name, folder or hub id")] = "tiny.en",
    language: Annotated[str, typer.Option(help="of the speech, for models that are told")] = "en",
    format: Annotated[str, typer.Option(help="txt, srt, vtt or json; several with commas")] = "txt",
    to: Annotated[Path | None, typer.Option("--out", help="folder for a file each; none prints what is heard as it comes")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16; none is bf16 where the device multiplies it itself")] = "",
) -> None:
    """Transcribe recordings, cut at pauses, with the time of every word; a file that cannot be read does not stop the others."""
    from speechlab import audio, passages, progress, systems
    from speechlab.text import shown
    from speechlab.units import SAMPLE_RATE

    kinds = [kind.strip() for kind in format.split(",")]
    if unknown := [kind for kind in kinds if kind not in passages.FORMATS]:
        raise InputError("There is no such format.", got=unknown[0], expected=", ".join(passages.FORMATS))
    if to is None and len(kinds) > 1:
        raise InputError("Several formats cannot be printed at once.", got=format, expected="one", do="name a folder: --out FOLDER")
    targets = [to / f"{file.stem}.{kind}" for file in files for kind in kinds] if to else []
    if twice := next((path for path in targets if targets.count(path) > 1), None):
        raise InputError("Two recordings would be written to one file.", got=str(twice), expected="names that differ", do="rename one")
    loaded, how = systems.ready(model, language, device, precision)
    broken = 0
    for file in files:
        try:
            wave_N = audio.decode(file)
        except InputError as e:
            typer.echo(shown(str(e)), err=True)
            broken += 1
            continue
        heard, seconds = [], len(wave_N) / SAMPLE_RATE
        coming = passages.hear(loaded, wave_N, **how)
        if to is None and kinds == ["txt"]:  # the text itself shows how far it is
            for passage, _ in coming:
                heard.append(passage)
                out.print(shown(passage.text), markup=False, soft_wrap=True)
        else:
            with progress.bar(shown(file.name), seconds) as advance:
                for passage, done in coming:
                    heard.append(passage)
                    advance(done, seconds)
                advance(seconds, seconds)
            if to is None:
                out.print(shown(passages.FORMATS[kinds[0]](heard)), markup=False, soft_wrap=True, end="")
        if not any(passage.words for passage in heard):
            typer.echo(f"{shown(file.name)}: nobody speaks in it", err=True)
        for kind in kinds if to else ():
            assert to is not None
            to.mkdir(parents=True, exist_ok=True)
            path = to / f"{file.stem}.{kind}"
            path.write_text(passages.FORMATS[kind](heard), "utf-8")
            out.print(str(path), markup=False, soft_wrap=True)
    if broken:
        raise InputError("Not every recording could be read.", got=f"{broken} of {len(files)} could not", expected="audio", do="see above")
