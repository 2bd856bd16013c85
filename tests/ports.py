"""A port for processes that talk to each other on this machine."""

import socket


def free_port() -> str:
    """One that nobody listened on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
