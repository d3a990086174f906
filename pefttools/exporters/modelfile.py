"""Modelfile: how Ollama runs the GGUF file: template, stop tokens, instruction and parameters.

Ollama has templates of its own kind (Go's). The text before and after a message of each role is read off what the chat
template writes; if the parts do not add up to what it writes for a longer chat, the Modelfile has no template, and
Ollama looks for one that it knows in the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks.base import Task

FILE = "Modelfile"
SYSTEM, USER, ASSISTANT = "\x01system\x01", "\x01user\x01", "\x01assistant\x01"
QUOTES = '"""'
CONTEXT = 8192
"""Upper limit of tokens that Ollama has room for by default; `PARAMETER num_ctx` in the file changes it."""
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}


@dataclass(frozen=True)
class Parts:
    """What a chat template writes around messages."""

    begin: str
    """Before the first message."""
    around: dict[str, tuple[str, str]]
    """Role -> text before and after a message."""
    adds_begin: bool
    """Whether the tokenizer adds `begin` to every text, as llama.cpp then does."""
    default_system: str | None = None
    """The instruction that is written where a chat has none."""

    def render(self, roles: list[str], prompts: bool) -> str:
        """A chat of these roles; with the beginning of an answer at its end if it `prompts`."""
        text = self.begin + "".join(f"{self.around[r][0]}{ROLES[r]}{self.around[r][1]}" for r in roles)
        return text + (self.around["assistant"][0] if prompts else "")

    @property
    def go(self) -> str:
        """The template in Ollama's language."""
        blocks = "".join(
            f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        )
        begin = "" if self.adds_begin else self.begin
        return f"{begin}{{{{ range .Messages }}}}{blocks}{{{{ end }}}}{{{{ end }}}}{self.around['assistant'][0]}"


def text(task: Task, tokenizer: PreTrainedTokenizerBase, file: str) -> str:
    """The Modelfile of an artifact."""
    decoding = task.decoding(tokenizer)
    lines = [f"# ollama create NAME -f {FILE}", f"FROM ./{file}"]
    stops = task.generation_settings(tokenizer).stop_token_ids
    if getattr(task, "chat", False):
        found = parts(tokenizer)
        lines.append(
            f'TEMPLATE """{found.go}"""' if found else "# The chat template is in the file; it has no form for Ollama."
        )
        system = getattr(task, "system", None) or (found.default_system if found else None)
        if system:
            lines.append(f'SYSTEM """{system}"""' if QUOTES not in system else "# The instruction has quotes.")
    else:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    lines += [f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(one)}"' for one in stops]
    if decoding is not None:
        lines.append(f"PARAMETER num_predict {decoding.max_new_tokens}")
        lines.append(f"PARAMETER temperature {decoding.temperature:g}")
    lines.append(f"PARAMETER num_ctx {min(tokenizer.model_max_length, CONTEXT)}")
    return "\n".join([*lines, ""])


def parts(tokenizer: Any) -> Parts | None:
    """The parts of the tokenizer's chat template; None if it is not made of such parts."""
    try:
        found = _read(tokenizer)
        for roles in (["system", "user"], ["system", "user", "assistant", "user"], ["system", "user", "assistant"]):
            prompts = roles[-1] == "user"
            if found.render(roles, prompts) != _rendered(tokenizer, roles, prompts):
                return None
        found = _with_default(found, _rendered(tokenizer, ["user"], True))
    except Exception:  # templates raise errors of their own for roles that they do not know
        return None
    return found if QUOTES not in found.go else None


def _with_default(parts: Parts, asked: str) -> Parts:
    """The parts with the instruction that a chat without one gets. Raises ValueError when it cannot be read off."""
    if asked == parts.render(["user"], True):
        return parts
    (before, after), own = parts.around["system"], parts.render(["user"], True).removeprefix(parts.begin)
    head = parts.begin + before
    if not (asked.startswith(head) and asked.endswith(after + own)):
        raise ValueError("a chat without instruction is written in another way")
    return replace(parts, default_system=asked[len(head) : len(asked) - len(after + own)])


def _read(tokenizer: Any) -> Parts:
    whole = _rendered(tokenizer, ["system", "user", "assistant", "user", "assistant"], False)
    answered = _rendered(tokenizer, ["system", "user", "assistant"], False)
    asked = _rendered(tokenizer, ["system", "user"], False)
    prompted = _rendered(tokenizer, ["system", "user"], True)
    after_user, after_assistant = asked.rpartition(USER)[2], answered.rpartition(ASSISTANT)[2]
    before_assistant = prompted.removeprefix(asked)
    between = whole.partition(ASSISTANT)[2].partition(USER)[0]
    before_user = between[len(after_assistant) :]
    after_system = asked.partition(SYSTEM)[2].partition(USER)[0].removesuffix(before_user)
    first = asked.partition(SYSTEM)[0]
    begin = tokenizer.bos_token if tokenizer.bos_token and first.startswith(tokenizer.bos_token) else ""
    before_system = first.removeprefix(begin)
    return Parts(
        begin,
        {
            "system": (before_system, after_system),
            "user": (before_user, after_user),
            "assistant": (before_assistant, after_assistant),
        },
        tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id],
    )


def _rendered(tokenizer: Any, roles: list[str], prompts: bool) -> str:
    messages = [{"role": role, "content": ROLES[role]} for role in roles]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts)
