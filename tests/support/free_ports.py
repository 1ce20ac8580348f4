"""Ports on loopback for servers that are started later, by another process."""

import random
import socket

# Below the ports that Linux and macOS give to outgoing connections (from 32,768 and 49,152): one of those may be taken
# by any connection of any process between here and the moment when the server binds it.
_FIRST, _LAST = 15_000, 32_000


def free_port() -> int:
    """A port that nobody listens on now, drawn at random, so that test runs beside this one draw others."""
    while True:
        port = random.SystemRandom().randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
