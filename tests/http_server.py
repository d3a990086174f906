"""A server in a thread of the tests' process, and requests to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from pefttools.serving.app import application
from pefttools.serving.limits import Limits


class Server:
    """Requests to a server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers of a response; JSON is decoded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, (bytes, str)) or body is None else json.dumps(body)
        if content is not None:
            named.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, content, named)
            response = connection.getresponse()
            text = response.read().decode()
            is_json = "json" in response.getheader("content-type", "")
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, json.loads(text) if is_json else text, found
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and content of the response to a POST."""
        return self("POST", path, body, **headers)[:2]

    def open(self) -> socket.socket:
        """A connection for requests that are not well-formed."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextmanager
def serving(models: Any, limits: Limits | None = None, key: str | None = None) -> Iterator[Server]:
    """Inside, a server of these models runs."""
    app = application(models, limits, key)
    config = uvicorn.Config(app, port=0, log_config=None, log_level="warning", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield Server(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(60)
