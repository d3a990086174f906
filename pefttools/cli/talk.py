"""A conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pefttools.cli import display
from pefttools.errors import UserError
from pefttools.inference.conversation import Sampling, reply

if TYPE_CHECKING:
    from pefttools.inference.predictor import Predictor

HELP = "/reset, /system TEXT, /temperature T, /top-p P, /max-tokens N, /help, /quit"
NUMBERS = {"temperature": float, "top-p": float, "max-tokens": int}


class Talk:
    """One conversation with one model, or with two at once, which each have their own history.

    Args:
        models: name -> model.
        sampling: how replies are generated.
        system: the instruction that the conversation begins with.
    """

    def __init__(self, models: Mapping[str, Predictor], sampling: Sampling, system: str | None) -> None:
        self.models, self.sampling, self.system = models, sampling, system
        self.histories: dict[str, list[dict[str, str]]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all messages but the instruction."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        self.histories = {name: [*first] for name in self.models}

    def run(self) -> None:
        """Read lines and reply to them, until the input ends or /quit."""
        is_terminal = sys.stdin.isatty()
        if is_terminal:
            display.shown_now(f"{', '.join(self.models)}: {HELP}\n")
        while True:
            try:
                line = input("> " if is_terminal else "")
            except EOFError:
                break
            except KeyboardInterrupt:
                display.shown_now("\n")
                continue
            if line.split()[:1] == ["/quit"]:
                break
            if line.startswith("/"):
                self.command(*line[1:].split(maxsplit=1))
            elif line.strip():
                self.turn(line)

    def turn(self, text: str) -> None:
        """Send a message to each model and show the replies."""
        for name in self.models:
            history = self.histories[name]
            history.append({"role": "user", "content": text})
            if len(self.models) > 1:
                display.shown_now(f"[{name}] ")
            try:
                answer = self._reply(name)
            except UserError as error:
                history.pop()
                display.problems(error.problems)
                continue
            if answer.strip():
                history.append({"role": "assistant", "content": answer})
            else:  # templates refuse an empty message
                history.pop()
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)

    def _reply(self, name: str) -> str:
        """The reply of a model, shown as it is generated; Ctrl-C ends it."""
        found = reply(self.models[name], self.histories[name], self.sampling)
        pieces: list[str] = []
        try:
            for piece in found:
                pieces.append(piece)
                display.shown_now(piece)
        except KeyboardInterrupt:
            found.halted.set()
        more = " [cut: --max-tokens]" if found.finish == "length" and not found.halted.is_set() else ""
        display.shown_now(f"{more}\n")
        return "".join(pieces)

    def command(self, name: str = "", value: str = "") -> None:
        """Carry out a command like `/reset`."""
        if name == "reset":
            self.reset()
        elif name == "system":
            self.system = value or None
            self.reset()
        elif name in NUMBERS:
            self._set(name, value)
        elif name == "help":
            display.shown_now(f"{HELP}\n")
        else:
            display.problems([f"/{name} is no command; there are {HELP}"])

    def _set(self, name: str, value: str) -> None:
        """Change a setting of the sampling, if the value is valid."""
        if not value:
            now = getattr(self.sampling, name.replace("-", "_"))
            display.shown_now(f"/{name} is {'the default of the recipe' if now is None else now}\n")
            return
        try:
            chosen = replace(self.sampling, **{name.replace("-", "_"): NUMBERS[name](value)})
        except ValueError:
            display.problems([f"/{name}: {value!r} is not a number"])
            return
        if problems := chosen.problems():
            display.problems([f"/{problem.replace('_', '-')}" for problem in problems])
        else:
            self.sampling = chosen
