"""Read SQuAD's json as rows: flatten articles, their paragraphs and their questions to one row per question.

Both versions of the format are supported; in version 1 every question has an answer. Plausible answers to unanswerable
questions are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pefttools.errors import UserError


def is_squad(value: Any) -> bool:
    """Whether a file's JSON has SQuAD's layout."""
    articles = value.get("data") if isinstance(value, Mapping) else None
    return isinstance(articles, list) and any(isinstance(a, Mapping) and "paragraphs" in a for a in articles)


def rows(value: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """`id`, `title`, `context`, `question`, `answers` (each a `text` and its `answer_start`), `is_impossible`.

    Raises:
        UserError: a value is missing or of another type; the message gives its path.
    """
    try:
        return list(_rows(value))
    except _InvalidLayout as error:
        raise UserError(f"{source}: has SQuAD's layout, but {error}") from error


class _InvalidLayout(ValueError):
    pass


def _rows(value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for article, at in _objects(value, "data", ""):
        for paragraph, inner in _objects(article, "paragraphs", f"{at}."):
            context = _get(paragraph, "context", str, inner)
            for question, place in _objects(paragraph, "qas", f"{inner}."):
                answers = [] if question.get("answers") is None else list(_answers(question, place))
                row = {
                    "title": str(article.get("title", "")),
                    "context": context,
                    "question": _get(question, "question", str, place),
                    "answers": answers,
                    "is_impossible": bool(question.get("is_impossible", False)),
                }
                yield {"id": str(question["id"]), **row} if question.get("id") is not None else row


def _answers(question: Mapping[str, Any], place: str) -> Iterator[dict[str, Any]]:
    for answer, at in _objects(question, "answers", f"{place}."):
        yield {"text": _get(answer, "text", str, at), "answer_start": _get(answer, "answer_start", int, at)}


def _objects(holder: Mapping[str, Any], key: str, path: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    values = _get(holder, key, list, path.removesuffix("."))
    for i, value in enumerate(values):
        place = f"{path}{key}[{i}]"
        if not isinstance(value, Mapping):
            raise _InvalidLayout(f"{place} is not an object but {type(value).__name__}")
        yield value, place


def _get(holder: Mapping[str, Any], key: str, kind: type, place: str) -> Any:
    value = holder.get(key)
    if not isinstance(value, kind):
        what = "has no" if value is None else f"has {type(value).__name__} for"
        raise _InvalidLayout(f"{place or 'the file'} {what} {key!r}")
    return value
