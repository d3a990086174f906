"""The application: the paths of the server, on FastAPI."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from pefttools import settings
from pefttools.errors import UserError
from pefttools.inference.confidence import Confidence
from pefttools.serving import chats
from pefttools.serving.batching import Batcher, num_characters
from pefttools.serving.bodies import ChatBody, EmbeddingBody, ErrorBody, PredictBody
from pefttools.serving.guard import Guard
from pefttools.serving.limits import Limits, Overloaded
from pefttools.serving.measures import Measures
from pefttools.serving.models import Models, Text
from pefttools.settings import YAML_HINT

UNREADABLE = "There was an error parsing the body"
"""FastAPI's message for a body that is no text or too deep."""
STATUSES: dict[int | str, str] = {
    400: "the request is wrong; the message names the field", 401: "the API key is missing or wrong",
    404: "there is no such path, or the server was started without it",
    408: "the body did not arrive in time",
    413: "the body, a row or their number is too large", 415: "the content is not application/json",
    503: "the server is overloaded; Retry-After says when to try again",
    504: "the answer took too long",
}  # fmt: skip
"""Status -> what it means, for the pages at /docs."""
BODIES = {"/predict": PredictBody, "/v1/chat/completions": ChatBody, "/v1/embeddings": EmbeddingBody}


def application(models: Models, limits: Limits | None = None, key: str | None = None) -> Guard:
    """The ASGI application that serves these models.

    Args:
        key: what clients must send as `Authorization: Bearer KEY`; None lets everybody in.
    """
    chosen = limits or Limits()
    measures = Measures()
    batcher = Batcher(models.compute, chosen, measures.computed)
    measures.waiting(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        batcher.start()
        yield
        await batcher.stop()

    # its pages at /docs and /redoc need no network
    app = FastAPIOffline(
        title="pefttools", lifespan=lifespan, summary="Fine-tuned models, served by pefttools",
        responses={status: {"description": what, "model": ErrorBody} for status, what in STATUSES.items()},
    )  # fmt: skip
    _add_errors(app)
    _add_predictions(app, models, batcher, chosen)
    _add_openai(app, models, batcher, chosen)
    _add_state(app, models, measures)
    return Guard(app, chosen, measures, key)


def _add_predictions(app: FastAPI, models: Models, batcher: Batcher, limits: Limits) -> None:
    @app.post("/predict")
    async def predict(body: PredictBody) -> Any:
        """One prediction a row, in order; a row that cannot be read has an `error`."""
        if (body.rows is None) == (body.texts is None):
            raise UserError("give either rows or texts")
        values: list[Any] = body.rows if body.rows is not None else body.texts or []
        if not values:
            raise UserError("rows: there are none" if body.texts is None else "texts: there are none")
        _refuse_beyond(len(values), limits, "rows")
        _refuse_longer(values, limits, "row")
        served = models.get(body.model)
        wanted = _wanted(body)
        try:
            change = models.change(served.predictor.name, wanted)
        except UserError as error:
            raise UserError(*map(_of_body, error.problems)) from error
        if body.texts is not None and "text" not in served.predictor.task.fields:
            raise UserError(f"texts: {served.predictor.task.name} reads no single text; send rows")
        rows = served.read(values)
        good = [i for i, row in enumerate(rows) if not isinstance(row, UserError)]
        found: list[Any] = list(rows)
        answers = await batcher.submit(served.predictor.name, [rows[i] for i in good]) if good else []
        for i, one in zip(good, answers, strict=True):
            found[i] = one if isinstance(one, UserError) or change is None else change(one)
        return JSONResponse({
            "model": served.predictor.name,
            "predictions": [_prediction(number, one) for number, one in enumerate(found, 1)],
        })  # fmt: skip


def _wanted(body: PredictBody) -> Confidence | None:
    """The options on confidence. Raises UserError with the names of the body's fields."""
    options = (body.top_k, body.threshold, body.error_rate)
    try:
        return None if options == (None, None, None) else Confidence(*options)
    except UserError as error:
        raise UserError(*map(_of_body, error.problems)) from error


def _of_body(problem: str) -> str:
    """A message about options of the command line, with the fields of the body instead."""
    return problem.replace("--top-k", "top_k").replace("--threshold", "threshold").replace("--error-rate", "error_rate")


def _refuse_beyond(number: int, limits: Limits, what: str) -> None:
    """Raises HTTPException when a request has too many rows."""
    most = min(limits.rows, limits.waiting)
    if number > most:
        raise HTTPException(413, f"the request has {number:,} {what}; at most {most:,} are allowed")


def _refuse_longer(values: Sequence[Any], limits: Limits, what: str) -> None:
    """Raises HTTPException when a row has so many characters that its tokens would delay all other requests."""
    for number, value in enumerate(values, 1):
        characters = num_characters(value)
        if characters > limits.row_characters:
            raise HTTPException(
                413, f"{what} {number} has {characters:,} characters; at most {limits.row_characters:,} are allowed"
            )


def _base64(vector: Sequence[float]) -> str:
    """Little-endian numbers of 32 bits, as OpenAI's client wants them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _prediction(number: int, found: Any) -> Any:
    """A prediction, or an error with the number of its row."""
    if not isinstance(found, UserError):
        return found
    message = str(found)
    return {"error": message if message.startswith("row ") else f"row {number} {message}"}


def _add_openai(app: FastAPI, models: Models, batcher: Batcher, limits: Limits) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> Any:
        """The reply to the last message, whole or as server-sent events."""
        served = models.get(body.model)
        found = await asyncio.to_thread(chats.started, served, body)
        if body.stream:
            batcher.refuse_beyond()
            events = chats.pieces(served.predictor.name, found, batcher, limits.timeout)
            return StreamingResponse(events, media_type="text/event-stream")
        return await chats.whole(served.predictor.name, found, batcher, limits.timeout)

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingBody) -> Any:
        """A vector of length 1 for each text: the mean of the last block's outputs over tokens."""
        if not models.embeds:
            raise HTTPException(404, "start the server with --embeddings")
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts:
            raise UserError("input: there is no text")
        _refuse_beyond(len(texts), limits, "texts")
        _refuse_longer(texts, limits, "text")
        name = models.get(body.model).predictor.name
        vectors = await batcher.submit(name, [Text(text) for text in texts])
        if wrong := [f"input: text {n} {one}" for n, one in enumerate(vectors, 1) if isinstance(one, UserError)]:
            raise UserError(*wrong[:3])
        written = _base64 if body.encoding_format == "base64" else list
        data = [{"object": "embedding", "index": i, "embedding": written(one)} for i, one in enumerate(vectors)]
        return JSONResponse({"object": "list", "model": name, "data": data})

    @app.get("/v1/models")
    async def list_models() -> Any:
        """The models by name, with their tasks."""
        data = [
            {"id": name, "object": "model", "owned_by": "pefttools", "task": one.predictor.task.name}
            for name, one in models.served.items()
        ]
        return {"object": "list", "data": data}


def _add_state(app: FastAPI, models: Models, measures: Measures) -> None:
    @app.get("/health")
    async def health() -> Any:
        """Whether the server is ready, which it is as soon as it answers."""
        return {"status": "ok", "models": [*models.served]}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus' format."""
        return Response(measures.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> Response:
        del request
        return _error(400, "; ".join(error.problems))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        cls = BODIES.get(request.url.path)
        if cls is None or any(one["type"] == "json_invalid" for one in error.errors()):
            return _error(400, "the body is not JSON")
        if isinstance(error.body, bytes):
            return _error(415, "the header Content-Type must be application/json")
        if not isinstance(error.body, dict):
            return _error(400, "the body must be a JSON object")
        _, problems = settings.check(cls, error.body, "")
        return _error(400, "; ".join(_as_json(problem.removeprefix(": ")) for problem in problems))

    @app.exception_handler(Overloaded)
    async def overloaded(request: Request, error: Overloaded) -> Response:
        del request
        return _error(503, "the server is overloaded; try again later", {"Retry-After": str(error.args[0])})

    @app.exception_handler(TimeoutError)
    async def late(request: Request, error: TimeoutError) -> Response:
        del request, error
        return _error(504, "the answer took too long; send fewer rows, or try again later")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        del request
        detail = "the body is not JSON" if error.detail == UNREADABLE else str(error.detail)
        return _error(error.status_code, detail, dict(error.headers or {}))


def _as_json(problem: str) -> str:
    """A message about settings without what concerns YAML alone."""
    return problem.replace(YAML_HINT, "")


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)
