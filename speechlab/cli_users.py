"""The command line's part for who may come in to the served pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speechlab.cli_corpus import out

app = typer.Typer()

UsersOption = Annotated[Path | None, typer.Option("--users", help="file of users; none is speechlab/users in your configuration's folder")]


@app.command()
def user(
    name: Annotated[str | None, typer.Argument(help="as they log in, or as the OAuth service calls them; none lists all")] = None,
    role: Annotated[str, typer.Option(help="reader looks; operator also launches, stops, tags and deletes")] = "reader",
    password: Annotated[bool, typer.Option("--password/--no-password", help="without one they come by OAuth alone")] = True,
    remove: Annotated[bool, typer.Option("--remove", help="take them out")] = False,
    users: UsersOption = None,
) -> None:
    """Let someone in to the served pages, change them, or take them out; a password is asked for, or read from standard input."""
    from speechlab.users import ELSEWHERE, Users

    found = Users(users)
    if name is None:
        for known in found.all().values():
            out.print(f"{known.name}  {known.role}{'  by OAuth alone' if known.hash == ELSEWHERE else ''}", markup=False)
    elif remove:
        found.remove(name)
        out.print(f"{name} is out: {found.path}", markup=False)
    else:
        found.put(name, role, _asked() if password else None)
        out.print(f"{name} comes in as {role}: {found.path}", markup=False)


def _asked() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")
