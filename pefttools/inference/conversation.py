"""Conversations with a fine-tuned language model: replies come piece by piece, with the chat template of training."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Queue
from typing import TYPE_CHECKING, Any

from pefttools.data import chat_tokens
from pefttools.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pefttools.inference.predictor import Predictor

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How a reply is generated; None stands for what the recipe's task says."""

    temperature: float | None = None
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this."""
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end a reply; they are not part of it."""
    seed: int = 0

    def problems(self) -> list[str]:
        """What is wrong with the values, one message each."""
        found = []
        if self.temperature is not None and self.temperature < 0:
            found.append(f"temperature: must be at least 0, got {self.temperature:g}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p: must be above 0 and at most 1, got {self.top_p:g}")
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(f"max_tokens: must be at least 1, got {self.max_tokens}")
        if "" in self.stop:
            found.append("stop: an empty text would end every reply")
        return found


@dataclass
class Reply:
    """A reply while it is generated: iterate over it for its pieces, then read the rest."""

    pieces: Iterator[str]
    prompt_tokens: int
    tokens: int = 0
    """Generated tokens, the end token included."""
    finish: str = "stop"
    """`stop`, or `length` when `max_tokens` were generated."""
    halted: threading.Event = field(default_factory=threading.Event)
    """Set it to end the generation after the next token."""

    def __iter__(self) -> Iterator[str]:
        return self.pieces


def refuse_unless_chatting(predictor: Predictor) -> None:
    """Raises UserError when the model is no language model that was trained on chats or texts."""
    if predictor.task.name != "causal_lm":
        raise UserError(
            f"{predictor.name}: {predictor.task.name} cannot hold a conversation; that takes a run of causal_lm"
        )


def reply(predictor: Predictor, messages: Sequence[Message], sampling: Sampling | None = None) -> Reply:
    """The reply to the last message.

    Args:
        messages: `role` and `content` each; the last one is the user's.

    Raises:
        UserError: the model holds no conversations, a value or a message is invalid, or there is no room for a reply.
    """
    from pefttools.tasks import _generation

    refuse_unless_chatting(predictor)
    chosen = sampling or Sampling()
    problems = chosen.problems()
    task, tokenizer = predictor.task, predictor.tokenizer
    ids, row = [], {}
    if messages and messages[-1].get("role") == "assistant":
        problems.append("messages: the last one must be the user's, because it is answered")
    try:
        row = task.read_unlabeled({"messages": [dict(message) for message in messages]})
        (ids,) = task.with_values(cut="end").prompts([row], tokenizer)  # a question that is too long is an error here
    except ValueError as error:
        problems.append(f"messages: {error}")
    room = tokenizer.model_max_length - len(ids)
    if room < 1:
        problems.append(f"messages: {len(ids)} tokens leave no room for a reply; the model takes {len(ids) + room}")
    if problems:
        raise UserError(*problems)
    decoding = task.decoding(tokenizer)
    assert decoding is not None
    more = {**decoding.more, "top_p": chosen.top_p}
    temperature = decoding.temperature if chosen.temperature is None else chosen.temperature
    settings = _generation.config(
        predictor.model,
        tokenizer,
        _generation.Decoding(
            min(room, chosen.max_tokens or decoding.max_new_tokens), 1, temperature, chosen.seed, decoding.stop_ids,
            more if temperature > 0 else decoding.more,
        ),
    )  # fmt: skip
    found = Reply(iter(()), len(ids))
    generated = _generated(predictor, ids, settings, chosen.seed, found)
    if getattr(task, "chat", False):
        generated = _without(generated, *chat_tokens.around(tokenizer, getattr(task, "chat_template", None)))
    found.pieces = _before_stop(generated, chosen.stop, found)
    return found


def _without(pieces: Iterator[str], before: str, after: str) -> Iterator[str]:
    """The text without what the chat template writes around every answer (an empty thought, a space)."""
    held, begun = "", False
    for piece in pieces:
        held += piece
        if not begun and before.startswith(held) and held != before:
            continue  # it may still become what comes before an answer
        if not begun:
            held, begun = held.removeprefix(before), True
        ready = len(held) - len(after)
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    held = held if begun else held.removeprefix(before)
    if rest := held.removesuffix(after):
        yield rest


def _generated(predictor: Predictor, ids: list[int], settings: Any, seed: int, about: Reply) -> Iterator[str]:
    """Generate in a thread; yields texts as soon as their characters are complete."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    queue: Queue[int | BaseException | None] = Queue()

    class Halted(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            del scores, kwargs
            queue.put(int(input_ids[0, -1]))
            return torch.full((len(input_ids),), about.halted.is_set(), device=input_ids.device)

    def generate() -> None:
        try:
            device = next(predictor.model.parameters()).device
            prompt = torch.tensor([ids], device=device)
            with torch.no_grad(), torch.random.fork_rng(enabled=settings.do_sample):
                if settings.do_sample:
                    torch.manual_seed(seed)
                predictor.model.generate(  # type: ignore[operator]
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings,
                    stopping_criteria=StoppingCriteriaList([Halted()]),
                )  # fmt: skip
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    tokens: list[int] = []
    ends = {*(settings.eos_token_id or ())}
    about.finish = "length"
    try:
        yield from _pieces(queue, tokens, ends, predictor.tokenizer, about)
    finally:
        about.halted.set()
        thread.join()


def _pieces(
    queue: Queue[int | BaseException | None],
    tokens: list[int],
    ends: set[int],
    tokenizer: PreTrainedTokenizerBase,
    about: Reply,
) -> Iterator[str]:
    """The texts of tokens from a queue; a character that takes several tokens appears with its last one."""
    shown = ""
    while (one := queue.get()) is not None:
        if isinstance(one, BaseException):
            raise one
        about.tokens += 1
        if one in ends:
            about.finish = "stop"
            break
        tokens.append(one)
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    rest = str(tokenizer.decode(tokens, skip_special_tokens=True))[len(shown) :]
    if rest:
        yield rest


def _before_stop(pieces: Iterator[str], stop: Sequence[str], about: Reply) -> Iterator[str]:
    """The text up to the first stop text. The end of a piece that may begin one is held back."""
    held = ""
    longest = max(map(len, stop), default=0)
    for piece in pieces:
        held += piece
        place = min((i for text in stop if (i := held.find(text)) >= 0), default=-1)
        if place >= 0:
            about.halted.set()
            about.finish = "stop"
            if held[:place]:
                yield held[:place]
            return
        ready = len(held) - max(0, longest - 1)
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held
