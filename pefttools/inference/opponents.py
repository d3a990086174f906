"""A fine-tuned language model and its base, to talk to both."""

from __future__ import annotations

from pathlib import Path

from pefttools.inference.conversation import refuse_unless_chatting
from pefttools.inference.predictor import Predictor, is_artifact, load_predictor, recipe_of
from pefttools.reporter import SILENT, Reporter

BASE = "base"


def load_opponents(path: Path, with_base: bool, reporter: Reporter = SILENT) -> dict[str, Predictor]:
    """The models by name: the trained one, before it the base if that is wanted.

    Raises:
        UserError: the path is neither a finished run nor an artifact, or not of a language model.
    """
    found = {BASE: load_base(path, reporter)} if with_base else {}
    trained = load_predictor(path, "auto", reporter)
    refuse_unless_chatting(trained)
    name = trained.name if trained.name != BASE else f"{BASE}, {'exported' if is_artifact(path) else 'trained'}"
    return {**found, name: trained}


def load_base(path: Path, reporter: Reporter = SILENT) -> Predictor:
    """The model before training. Raises UserError like `load_opponents`."""
    recipe = recipe_of(path)
    base = recipe.task.load(recipe.base, reporter)
    found = Predictor(BASE, base.model.eval(), base.tokenizer, recipe)
    refuse_unless_chatting(found)
    return found
