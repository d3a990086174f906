"""back_translation: translate a text to another language and back (Sennrich et al. 2016; Yu et al. 2018, QANet).

`there` and `back` each name a model: an encoder-decoder or a language model, pretrained or a finished run of yours.
Texts are translated in batches by beam search or as the run is set; the likeliest translation is the only one, so there
is one copy a row. Translations are stored in the cache under the hashes of both models, and are computed once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, PrivateAttr

from pefttools import atomic
from pefttools.augmentations._translator import Translator, TranslatorSettings, code_files, open_translator
from pefttools.augmentations.base import Augmentation, Context
from pefttools.errors import UserError
from pefttools.reporter import SILENT, Reporter
from pefttools.sources import checksums
from pefttools.sources.cache import entry, only_one

if TYPE_CHECKING:
    from pathlib import Path

    from pefttools.tasks.base import Task

NO_MODEL = (
    "needs a model for each direction; set there and back to a base that translates, or to a finished run of seq2seq"
)


class BackTranslation(Augmentation):
    """Settings of back_translation: the two models."""

    copies: int = Field(default=1, ge=1, le=1)
    """Number of copies of each row; only 1, because each text has one likeliest translation."""
    there: TranslatorSettings | None = None
    """The model that translates to another language. A plain string is its `source`."""
    back: TranslatorSettings | None = None
    """The model that translates back. A plain string is its `source`."""
    _found: Mapping[str, str] | None = PrivateAttr(default=None)
    """Text -> its back-translation, after `bind`."""

    def problem(self, task: Task) -> str | None:
        return super().problem(task) or (None if self.there and self.back else NO_MODEL)

    def bind(self, context: Context) -> Self:
        if not (self.there and self.back):
            raise UserError(f"augmentations.back_translation: {NO_MODEL}")
        key = "augmentations.back_translation"
        there = open_translator(self.there, f"{key}.there", context.reporter)
        back = open_translator(self.back, f"{key}.back", context.reporter)
        file = entry("back_translation", [there.digest, back.digest], sorted(code_files()), ".json")
        bound = self.model_copy()
        bound._found = _translations(context.texts, there, back, file, context.reporter)
        return bound

    def rewrite(self, text: str, draw: random.Random) -> str | None:
        del draw
        found = self._found or {}
        if text not in found:
            found = self.bind(Context([text]))._found or {}
        return found[text]


def _translations(
    texts: Sequence[str], there: Translator, back: Translator, file: Path, reporter: Reporter = SILENT
) -> dict[str, str]:
    """Text -> its back-translation; those that are not in the file are computed and added to it."""
    with only_one(file):
        known: dict[str, str] = {}
        if file.is_file() and (problem := checksums.damage(file)):
            reporter.note(f"cached translations: {file} {problem}, so they are computed again")
        elif file.is_file():
            known = json.loads(file.read_text("utf-8"))
        if missing := sorted({text for text in texts if text.strip()} - {*known}):
            abroad = there.translate(missing, "translating", reporter)
            translated = [i for i, text in enumerate(abroad) if text]
            again = back.translate([abroad[i] for i in translated], "translating back", reporter)
            known |= dict.fromkeys(missing, "") | {missing[i]: t for i, t in zip(translated, again, strict=True)}
            atomic.write_json(file, known)
            checksums.write(file)
    return {text: known.get(text, text) for text in texts}
