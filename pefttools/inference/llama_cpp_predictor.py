"""Predictions with a GGUF artifact by llama.cpp instead of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttools import extras, hashes
from pefttools.data import chat_tokens
from pefttools.errors import UserError, damage_of
from pefttools.exporters import llama_cpp
from pefttools.exporters.gguf import FILE
from pefttools.inference.predictor import Predictor, is_artifact, recipe_of
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from pefttools.data.splitting import Row
    from pefttools.tasks.base import Prediction

MOST = 8192
"""Upper limit of tokens of a prompt and its answer together."""


@dataclass(frozen=True)
class LlamaCppPredictor(Predictor):
    """A GGUF file that llama.cpp has in memory; it answers one row at a time, greedily."""

    server: Any = field(default=None)

    room: int = MOST
    """Number of tokens that a prompt and its answer may have together."""

    def attempt(self, rows: Sequence[Row], reporter: Reporter = SILENT) -> tuple[list[Prediction | UserError], int]:
        decoding = self.task.decoding(self.tokenizer)
        assert decoding is not None
        found: list[Prediction | UserError] = []
        with reporter.bar("predicting", len(rows), "rows") as bar:
            for row in rows:
                found.append(self._answer(row, decoding.max_new_tokens))
                bar.advance(1)
        return found, 0

    def _answer(self, row: Row, max_new_tokens: int) -> Prediction | UserError:
        try:
            (ids,) = self.task.prompts([row], self.tokenizer)
            if len(ids) + max_new_tokens > self.room:
                return UserError(
                    f"has {len(ids)} tokens, which with an answer of {max_new_tokens} are more than the {self.room} of"
                    " --engine llama.cpp"
                )
            answer = llama_cpp.reply(self.server, self.task.generation_input(row), max_new_tokens)
        except (RuntimeError, ValueError) as error:
            return UserError(f"cannot be answered: {error}")
        text = answer["text"]
        if getattr(self.task, "chat", False):
            text = bare(text, *chat_tokens.around(self.tokenizer, getattr(self.task, "chat_template", None)))
        return {"prediction": text, "finish": answer["finish"]}


def bare(text: str, before: str, after: str) -> str:
    """An answer without what the chat template writes around every answer."""
    return text.removeprefix(before).removesuffix(after)


def load_with_llama_cpp(path: Path) -> Predictor:
    """The model of a GGUF artifact in llama.cpp.

    Raises:
        UserError: the path is no GGUF artifact, it is damaged, or llama.cpp is not installed.
    """
    from transformers import AutoTokenizer

    if not is_artifact(path) or not (path / FILE).is_file():
        raise UserError(
            f"--engine llama.cpp: {path} is no GGUF artifact; write one with `pefttools export RUN --to gguf`"
        )
    extras.require("--engine llama.cpp", [llama_cpp.BINDING])
    hashes.refuse_damaged(path)
    recipe = recipe_of(path)
    with damage_of(path, "export the run again"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    decoding = recipe.task.decoding(tokenizer)
    if not recipe.task.generates or decoding is None:
        raise UserError(
            f"--engine llama.cpp: {recipe.task.name} compares probabilities of its labels, which llama.cpp does not"
            " return; leave the option out"
        )
    if decoding.temperature > 0 or decoding.num_beams > 1:
        raise UserError(
            "--engine llama.cpp: answers are greedy, but the recipe samples or uses beams; leave the option out"
        )
    room = min(tokenizer.model_max_length, MOST)
    try:
        server = llama_cpp.open_server(path / FILE, room)
    except RuntimeError as error:
        raise UserError(f"--engine llama.cpp: {error}") from error
    return LlamaCppPredictor(path.absolute().name, None, tokenizer, recipe, server, room)  # type: ignore[arg-type]
