"""What requests contain."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from pefttools.settings import Settings


class Body(Settings):
    """The content of a request. A number is no text."""

    model_config = ConfigDict(coerce_numbers_to_str=False)


class PredictBody(Body):
    """Rows to predict: `rows` with the columns of the training file, or `texts`."""

    model: str | None = None
    """The model's name; may be left out if there is one model."""
    rows: list[dict[str, Any]] | None = None
    """Rows with the columns of the training file, without labels."""
    texts: list[str] | None = None
    """Texts, for tasks that read one text."""
    top_k: int | None = None
    """Return this many of the likeliest classes instead of all probabilities."""
    threshold: float | None = None
    """Mark rows as unsure whose class is less probable; with several labels per row, predict labels from here on."""
    error_rate: float | None = None
    """Mark rows as unsure so that at most this share has a wrong class without a mark."""


class TextPart(Body):
    """A part of a message; only texts can be read."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    """The text, or its parts, which are joined."""

    def plain(self) -> dict[str, str]:
        """Role and text."""
        parts = self.content if isinstance(self.content, list) else []
        return {"role": self.role, "content": "".join(part.text for part in parts) if parts else str(self.content)}


class ChatBody(Body):
    """A conversation to continue, as in OpenAI's interface."""

    model: str | None = None
    """The model's name; may be left out if there is one model."""
    messages: list[Message] = Field(min_length=1)
    """The messages so far; the last one is answered."""
    stream: bool = False
    """Send the reply piece by piece, as server-sent events."""
    temperature: float | None = None
    """0 takes the likeliest token; the recipe's by default."""
    top_p: float = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this."""
    max_tokens: int | None = None
    """Limit of the reply's tokens; the recipe's by default."""
    max_completion_tokens: int | None = None
    """Another name of max_tokens."""
    stop: str | list[str] = Field(default_factory=list)
    """Texts that end the reply."""
    seed: int = 0
    """Seed of sampling."""
    n: Literal[1] = 1
    """Number of replies; only one is possible."""
    frequency_penalty: Literal[0] = 0
    """Not possible."""
    presence_penalty: Literal[0] = 0
    """Not possible."""
    stream_options: dict[str, bool] | None = None
    """Not used: the events of a stream have no counts of tokens."""
    user: str | None = None
    """Not used."""


class ErrorBody(Body):
    """What every response with an error contains."""

    error: dict[str, str]
    """Its `message`."""


class EmbeddingBody(Body):
    """Texts to embed, as in OpenAI's interface."""

    model: str | None = None
    """The model's name; may be left out if there is one model."""
    input: str | list[str]
    """A text, or several."""
    encoding_format: Literal["float", "base64"] = "float"
    """Lists of numbers, or their bytes."""
    user: str | None = None
    """Not used."""
