"""Replies of a language model as OpenAI's interface sends them, whole or piece by piece."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from pefttools.inference.conversation import Reply, Sampling, reply
from pefttools.serving.batching import Batcher
from pefttools.serving.bodies import ChatBody
from pefttools.serving.models import Served

END = "data: [DONE]\n\n"


def sampling(body: ChatBody) -> Sampling:
    """How the reply to a request is generated."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    limit = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
    return Sampling(body.temperature, body.top_p, limit, stop, body.seed)


def started(served: Served, body: ChatBody) -> Reply:
    """The reply, which is not generated yet. Raises UserError when the request is invalid."""
    return reply(served.predictor, [message.plain() for message in body.messages], sampling(body))


async def whole(name: str, found: Reply, batcher: Batcher, timeout: float) -> dict[str, Any]:
    """The complete reply. Raises TimeoutError when it takes longer."""
    try:
        text = await asyncio.wait_for(batcher.exclusively(lambda: _text(found)), timeout)
    except (TimeoutError, asyncio.CancelledError):
        found.halted.set()
        raise
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.tokens}
    usage["total_tokens"] = sum(usage.values())
    choice = {"index": 0, "message": message, "finish_reason": found.finish}
    return {**_head(name, "chat.completion"), "choices": [choice], "usage": usage}


async def pieces(name: str, found: Reply, batcher: Batcher, timeout: float) -> AsyncIterator[str]:
    """The reply as server-sent events; the generation ends if the client goes away, or after the timeout."""
    end = time.monotonic() + timeout
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def generate() -> None:
        try:
            for piece in () if found.halted.is_set() else found:
                loop.call_soon_threadsafe(queue.put_nowait, piece)
                if time.monotonic() > end:
                    found.halted.set()
        finally:
            loop.call_soon_threadsafe(queue.put_nowait, None)

    head = _head(name, "chat.completion.chunk")
    try:
        running = asyncio.ensure_future(batcher.exclusively(generate))
        yield _event(head, {"role": "assistant", "content": ""}, None)
        while (piece := await queue.get()) is not None:
            yield _event(head, {"content": piece}, None)
        await running
        yield _event(head, {}, found.finish)
        yield END
    finally:
        found.halted.set()


def _text(found: Reply) -> str:
    """The complete reply; empty if nobody waits for it any more."""
    return "" if found.halted.is_set() else "".join(found)


def _head(name: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": name}


def _event(head: dict[str, Any], delta: dict[str, str], finish: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n"
