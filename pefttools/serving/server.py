"""Starting the server and stopping it gracefully, on uvicorn."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pefttools.errors import UserError
from pefttools.serving.app import application
from pefttools.serving.limits import Limits
from pefttools.serving.models import Models

if TYPE_CHECKING:
    import uvicorn

LAST_PORT = 65535
BACKLOG = 2048
CONNECTIONS = 4096
"""Connections beyond which new requests get the status 503."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError when the port is taken, or the host is not this machine."""
    if not 0 <= port <= LAST_PORT:
        raise UserError(f"--port: {port} is not a number from 0 to {LAST_PORT}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except socket.gaierror as error:
        found.close()
        raise UserError(f"--host: {host} is no address of this machine: {error.strerror}") from error
    except OSError as error:
        found.close()
        raise UserError(f"--port: {host}:{port} cannot be used: {error}; name another --port or --host") from error
    return found


@contextmanager
def _stopped_by_uvicorn() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT do nothing more once uvicorn, which raises them again, has stopped."""
    names = (signal.SIGTERM, signal.SIGINT)
    before = {name: signal.signal(name, lambda *_: None) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def configured(models: Models, limits: Limits, key: str | None = None) -> uvicorn.Server:
    """A server that is not running yet; it answers the requests that it accepted before it stops."""
    import uvicorn

    config = uvicorn.Config(
        # a logging configuration of uvicorn's would close the streams of other libraries' handlers
        application(models, limits, key), log_config=None, log_level="warning", access_log=False,
        backlog=BACKLOG, lifespan="on", limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(limits.timeout) + 1, timeout_keep_alive=30,
    )  # fmt: skip
    return uvicorn.Server(config)


def run(models: Models, listener: socket.socket, limits: Limits, key: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    with _stopped_by_uvicorn():
        configured(models, limits, key).run(sockets=[listener])
