"""Ports of loopback for servers that are killed and must come back on the same one."""

import random
import socket

# Below the ports that the kernel gives to outgoing connections: those could take one meanwhile.
_PORTS = range(12000, 19000)


def free_port() -> int:
    """Return a loopback port that nothing listens on now and no outgoing connection gets."""
    for port in random.sample(_PORTS, k=len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port in {_PORTS}")
