"""Putting an application on an address."""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import quote

from starlette.types import ASGIApp

from reelign.errors import ConfigError

LONGEST_MESSAGE = 64 * 1024  # bytes of one message over a WebSocket; pages send a few lines


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 is any free one.

    Raises:
        ConfigError: it is taken, or not ours.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be served on ({error.strerror}); choose another --port or --host"
        ) from error


def address_of(listener: socket.socket, token: str | None) -> str:
    """What to open in a browser; with a token, the page that signs in."""
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    return address if token is None else f"{address}/sign-in#{quote(token)}"


def serve(app: ASGIApp, listener: socket.socket, close: Callable[[], None] | None = None) -> None:
    """Serve until interrupted, then ``close``."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", server_header=False, timeout_graceful_shutdown=5, ws_max_size=LONGEST_MESSAGE
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        if close is not None:
            close()
