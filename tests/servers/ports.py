"""Ports for servers that have to be told one."""

from __future__ import annotations

import random
import socket

_random = random.Random()  # of the process: test workers do not pick the same


def free_port() -> int:
    """Below those the kernel gives to connections that go out: none of them takes it before the server does."""
    while True:
        port = _random.randrange(15_000, 30_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
