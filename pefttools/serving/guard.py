"""What happens to a request before it is read: its size, its key, and how long it may take to arrive.

A plain ASGI layer: it reads the whole body within the limits and hands it on as one message.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pefttools.serving.limits import Limits
from pefttools.serving.measures import Measures

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = ("/health",)
"""Paths that need no key."""


TOO_LARGE = 413


class Refused(Exception):
    """A request that is answered by a status and a message."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        self.status, self.headers = status, headers
        super().__init__(message)


class Guard:
    """Checks requests before the application reads them."""

    def __init__(self, app: App, limits: Limits, measures: Measures, key: str | None = None) -> None:
        self.app, self.limits, self.measures, self.key = app, limits, measures, key
        self.bytes = 0
        """Bytes of all bodies in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status, size = time.perf_counter(), 500, 0

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            self._check_key(scope)
            body = await asyncio.wait_for(self._body(scope, receive), self.limits.timeout)
            size = len(body)
            await self.app(scope, _once(body, receive), sent)
        except Refused as error:
            status = error.status
            if status == TOO_LARGE:
                await self._drain(scope, receive)
            await refuse(send, error.status, str(error), error.headers)
        except TimeoutError:
            status = 408
            await refuse(send, 408, f"the request did not arrive within {self.limits.timeout:g} seconds", {})
        except _Gone:
            status = 499
        finally:
            self.bytes -= size
            self.measures.request(scope["path"], status, time.perf_counter() - begun)

    def _check_key(self, scope: Scope) -> None:
        """Raises Refused without the right key."""
        if self.key is None or scope["path"] in OPEN:
            return
        found = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(found, f"Bearer {self.key}".encode()):
            raise Refused(401, "the header Authorization must be `Bearer KEY` with the server's key")

    async def _drain(self, scope: Scope, receive: Receive) -> None:
        """Read the rest of a body that is too long; a client that is still sending would not read the answer."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limits.drained_bytes:
            return
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.timeout):
                while size <= self.limits.drained_bytes:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, which is counted in `bytes`. Raises Refused when it is too large."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limits.body_bytes:
            raise Refused(
                TOO_LARGE, f"the body has {int(announced):,} bytes; at most {self.limits.body_bytes:,} are allowed"
            )
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                part = message.get("body", b"")
                size, self.bytes = size + len(part), self.bytes + len(part)
                if size > self.limits.body_bytes:
                    raise Refused(
                        TOO_LARGE, f"the body has more than the {self.limits.body_bytes:,} bytes that are allowed"
                    )
                if self.bytes > self.limits.all_bytes:
                    raise Refused(503, "the server is overloaded; try again later", **{"retry-after": "1"})
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
        except BaseException:
            self.bytes -= size
            raise


class _Gone(Exception):
    """The client went away before its request was complete."""


def _once(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body first, then what comes after it."""
    is_read = False

    async def receives() -> MutableMapping[str, Any]:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receives


async def refuse(send: Send, status: int, message: str, headers: dict[str, str]) -> None:
    """Send an error."""
    body = json.dumps({"error": {"message": message}}).encode()
    lines = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
