"""A TCP port of this machine that is to be listened on: free, or an error that says so before anything is started.

Not covered: who takes it between the look and the server's own start.
"""

from __future__ import annotations

import socket

from speechlab.errors import InputError


def need_free(address: str, port: int, do: str) -> None:
    """See that a server could listen.

    Args:
        address: Of this machine.
        port: TCP port.
        do: What to do about it if not.

    Raises:
        InputError: if it cannot be had.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as e:
            raise InputError("The port cannot be had.", got=f"{address}:{port} ({e})", expected="a free port", do=do) from None
