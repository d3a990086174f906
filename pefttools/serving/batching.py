"""Rows of concurrent requests are computed together, by one thread.

While the model computes, requests queue up; then the oldest ones of one model are taken, up to limits of rows and
tokens. A request with many rows is computed in parts, so that others need not wait for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pefttools.serving.limits import Limits, Overloaded

CHARACTERS = 3
"""Characters of a token, at least, by which tokens are estimated."""
SMOOTHING = 0.2
"""Weight of the last pass in the estimate of the rate."""

Compute = Callable[[str, Sequence[Any]], Sequence[Any]]
"""(model, rows) -> a result for each row."""


@dataclass(eq=False)
class _Request:
    """Rows of one request with the results so far."""

    model: str
    rows: Sequence[Any]
    tokens: Sequence[int]
    done: asyncio.Future[list[Any]]
    results: list[Any] = field(default_factory=list)
    taken: int = 0
    """Number of rows that were computed or are being computed."""


class Batcher:
    """Computes the rows of requests, the oldest first.

    Args:
        compute: called in one thread, the same for every call.
        observe: called with the number of rows and the seconds of every pass.
    """

    def __init__(self, compute: Compute, limits: Limits, observe: Callable[[int, float], None]) -> None:
        self.compute, self.limits, self.observe = compute, limits, observe
        self.requests: deque[_Request] = deque()
        self.waiting = 0
        """Rows that were not computed yet."""
        self.rate = 100.0
        """Rows a second, estimated."""
        self.others = 0
        """Number of calls of `exclusively` that wait or run."""
        self.thread = ThreadPoolExecutor(1, "model")
        self.arrived = asyncio.Event()
        self.loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compute; called inside the event loop."""
        self.loop = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End after the pass that is being computed."""
        if self.loop:
            self.loop.cancel()
            await asyncio.gather(self.loop, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self.thread.shutdown)

    async def submit(self, model: str, rows: Sequence[Any]) -> list[Any]:
        """A result for each row.

        Raises:
            Overloaded: too many rows wait.
            TimeoutError: the results take longer than the limit.
        """
        if self.waiting + len(rows) > self.limits.waiting:
            raise Overloaded(max(1, round(self.waiting / self.rate)))
        done = asyncio.get_running_loop().create_future()
        request = _Request(model, rows, [_tokens(row) for row in rows], done)
        self.requests.append(request)
        self.waiting += len(rows)
        self.arrived.set()
        try:
            return await asyncio.wait_for(done, self.limits.timeout)
        except (TimeoutError, asyncio.CancelledError):
            self._forget(request)
            raise

    async def exclusively(self, work: Callable[[], Any]) -> Any:
        """Do other work with the models, in their thread, when it is its turn.

        Raises:
            Overloaded: too much other work waits.
        """
        self.refuse_beyond()
        self.others += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        finally:
            self.others -= 1

    def refuse_beyond(self) -> None:
        """Raises Overloaded when `exclusively` would."""
        if self.others >= self.limits.replies:
            raise Overloaded(self.others)

    def _forget(self, request: _Request) -> None:
        """Drop the rows of a request that nobody waits for."""
        if request in self.requests:
            self.requests.remove(request)
            self.waiting -= len(request.rows) - request.taken

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            if self.limits.delay and self.waiting < self.limits.pass_rows:
                await asyncio.sleep(self.limits.delay)
            parts = self._take()
            if not parts:
                self.arrived.clear()
                continue
            rows = [row for request, first, end in parts for row in request.rows[first:end]]
            begun = time.perf_counter()
            try:
                results = await loop.run_in_executor(self.thread, self.compute, parts[0][0].model, rows)
            except Exception as error:
                if len(parts) == 1:
                    self._fail(parts, error)
                else:  # only one of the requests may be to blame
                    await self._one_by_one(parts)
                continue
            seconds = time.perf_counter() - begun
            self.rate += SMOOTHING * (len(rows) / max(seconds, 1e-6) - self.rate)
            self.observe(len(rows), seconds)
            self._hand_out(parts, results)

    async def _one_by_one(self, parts: Sequence[tuple[_Request, int, int]]) -> None:
        """Compute each request's rows apart, so that only those that fail get an error."""
        loop = asyncio.get_running_loop()
        for part in parts:
            request, first, end = part
            try:
                rows = list(request.rows[first:end])
                self._hand_out([part], await loop.run_in_executor(self.thread, self.compute, request.model, rows))
            except Exception as error:
                self._fail([part], error)

    def _take(self) -> list[tuple[_Request, int, int]]:
        """Requests of the oldest one's model, with the places of the rows to compute next."""
        parts: list[tuple[_Request, int, int]] = []
        rows, tokens = self.limits.pass_rows, self.limits.pass_tokens
        for request in [*self.requests]:
            if rows <= 0 or tokens <= 0 or (parts and request.model != parts[0][0].model):
                break
            first = request.taken
            while request.taken < len(request.rows) and rows > 0 and tokens > 0:
                rows, tokens = rows - 1, tokens - request.tokens[request.taken]
                request.taken += 1
            parts.append((request, first, request.taken))
            self.waiting -= request.taken - first
            if request.taken == len(request.rows):
                self.requests.remove(request)
        return parts

    def _hand_out(self, parts: Sequence[tuple[_Request, int, int]], results: Sequence[Any]) -> None:
        found = iter(results)
        for request, first, end in parts:
            request.results += [next(found) for _ in range(end - first)]
            if len(request.results) == len(request.rows) and not request.done.done():
                request.done.set_result(request.results)

    def _fail(self, parts: Sequence[tuple[_Request, int, int]], error: Exception) -> None:
        for request, _, _ in parts:
            self._forget(request)
            if not request.done.done():
                request.done.set_exception(error)


def _tokens(row: Any) -> int:
    """The estimated number of tokens of a row."""
    return 2 + num_characters(row) // CHARACTERS


def num_characters(row: Any) -> int:
    """The number of characters of a row or a text."""
    values = row.values() if isinstance(row, dict) else [row]
    return sum(len(value) if isinstance(value, str) else len(str(value)) for value in values)
