"""Build the space of a search from the command line's words, and refuse a search that cannot tell anything.

Everything is checked before a trial runs: the keys, the ends of their ranges and all their choices, on models without
weights, and whether all trials are scored on the same rows.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pefttools.bases import loading
from pefttools.bench.preflight import params_of
from pefttools.bench.ranges import AUTO, LEARNING_RATE, Choices, Numbers, parse, split
from pefttools.bench.space import Dimension, Space, Texts, contexts, has, value_of
from pefttools.data.splitting import Splits, load_splits
from pefttools.errors import UserError
from pefttools.recipe import typed_yaml
from pefttools.recipe.overrides import CHOICES, pairs
from pefttools.recipe.parsing import TYPES
from pefttools.recipe.recipe import NAMED, Recipe
from pefttools.reporter import SILENT, Reporter
from pefttools.training import class_order

if TYPE_CHECKING:
    from pefttools.tasks.base import Task

SECTIONS = ("strategy", "base", "train.optimizer", *NAMED)
"""Keys below these depend on their choice."""
FIXED = {
    "seed": "every trial of the search has the recipe's seed; --seeds are those of the comparison in the end",
    "task": "trials of different tasks have different metrics",
}
"""Keys that cannot be searched -> why."""
ROWS = ("data", "task")
"""Sections that can change which rows are scored."""


def build(start: str, overrides: Sequence[str], searches: Sequence[str]) -> Space:
    """The space of a search.

    Args:
        searches: `KEY=RANGE` words; without any, the learning rate's range that the strategy declares.

    Raises:
        UserError: a key, a range or a value is wrong, or a search over it would change nothing.
    """
    space = Space(start, tuple(overrides), ())
    defaults = space.defaults
    words = [split(word) for word in searches or [f"{LEARNING_RATE}={AUTO}"]]
    words = sorted(((_plain(key), text) for key, text in words), key=lambda word: word[0].count("."))
    keys = [key for key, _ in words]
    if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
        raise UserError(f"--search: {twice[0]}: is searched twice; remove one")
    _refuse_overridden(keys, overrides)
    dimensions: list[Dimension] = []
    for key, text in words:
        if reason := FIXED.get(key.removesuffix(".name")):
            raise UserError(f"--search: {key}: cannot be searched: {reason}")
        space = Space(start, tuple(overrides), tuple(dimensions))
        found = _own_rates(space, defaults) if (key, text) == (LEARNING_RATE, AUTO) else [_dimension(space, key, text)]
        dimensions += found
    space = Space(start, tuple(overrides), tuple(dimensions))
    for one in dimensions:
        _check_values(space, one)
    return space


def _plain(key: str) -> str:
    """`strategy` for `strategy.name`."""
    section = key.removesuffix(".name")
    return section if section.rpartition(".")[2] in CHOICES else key


def _refuse_overridden(keys: Sequence[str], overrides: Sequence[str]) -> None:
    texts, _ = pairs(overrides)
    given = {_plain(key): text for key, text in texts.items()}
    if both := [key for key in keys if key in given]:
        raise UserError(*(f"--search: {key}: is also set to {given[key]} for all trials; remove one" for key in both))


def _dimension(space: Space, key: str, text: str) -> Dimension:
    """The dimension of a key. Raises UserError when there is no such key."""
    above = next((one for one in space.dimensions if one.key in SECTIONS and key.startswith(f"{one.key}.")), None)
    if above is None:
        return Dimension(key, parse(key, text, *_numeric(space.defaults, key)))
    choices, numeric = [], (False, False)
    for context in contexts(space.dimensions, Dimension("", above.range, above.key, _choices(above))):
        recipe = space.recipe(context)
        if has(recipe, key):
            choices.append(context[above.key])
            numeric = _numeric(recipe, key)
    if not choices:
        first = next(contexts(space.dimensions, Dimension("", above.range, above.key, _choices(above))))
        space.recipe({**first, key: text.partition(",")[0].partition("..")[0]})  # raises with the nearest name
        raise UserError(f"--search: {key}: none of {', '.join(_choices(above))} has it")
    return Dimension(key, parse(key, text, *numeric), above.key, tuple(choices))


def _choices(one: Dimension) -> tuple[str, ...]:
    assert isinstance(one.range, Choices)
    return one.range.texts


def _numeric(recipe: Recipe, key: str) -> tuple[bool, bool]:
    """Whether a setting can be a whole number, and whether it can be another number."""
    kind = typed_yaml.inner(TYPES, key.split("."), recipe.as_dict())
    members = typed_yaml.members(kind)
    if Any in members:
        return True, True  # an unknown key, which is refused when its values are checked
    return int in members, float in members


def _own_rates(space: Space, defaults: Recipe) -> list[Dimension]:
    """The learning rate's range that each searched strategy declares, or the recipe's strategy."""
    above = next((one for one in space.dimensions if one.key == "strategy"), None)
    if above is None:
        if not defaults.strategy.trains:
            raise UserError(
                f"strategy={defaults.strategy.name} trains nothing, so there is no learning rate to search; name keys"
                " with --search"
            )
        return [Dimension(LEARNING_RATE, Numbers(*defaults.strategy.lr_range, False, True))]
    found = []
    for choice in _choices(above):
        strategy = space.recipe({"strategy": choice}).strategy
        if strategy.trains:
            rates = Numbers(*strategy.lr_range, False, True)
            found.append(Dimension(LEARNING_RATE, rates, "strategy", (choice,), f"{LEARNING_RATE} of {choice}"))
    return found


def _check_values(space: Space, one: Dimension) -> None:
    """Raises UserError when a recipe refuses a value, or all values give the same recipe."""
    recipes = {text: _first_that_loads(space, one, text) for text in one.range.ends()}
    for text, other in itertools.combinations(recipes, 2):
        if value_of(recipes[text], one.key) == value_of(recipes[other], one.key):
            raise UserError(f"--search: {one.key}: {text} and {other} are the same; remove one")
    if len({recipe.digest for recipe in recipes.values()}) == 1:
        raise UserError(
            f"--search: {one.key}: changes nothing that is learnt, so all trials would be the same; search another key"
        )


def _first_that_loads(space: Space, one: Dimension, text: str) -> Recipe:
    """The recipe with a value, in the first context in which it is valid.

    A setting can need a value of another searched key (`strategy.loftq_steps` needs `strategy.init=loftq`).
    """
    first: UserError | None = None
    others = [other for other in space.dimensions if other.key not in (one.key, one.of)]
    for context in contexts(space.dimensions, one):
        for more in ({}, *({other.key: end} for other in others for end in other.range.ends())):
            try:
                return space.recipe({**context, **more, one.key: text})
            except UserError as error:
                first = first or error
    assert first is not None
    raise UserError(*(f"--search: {problem}" for problem in first.problems)) from first


def notes(space: Space, texts: Texts) -> tuple[str, ...]:
    """What `pefttools train` would say about a choice alone; nothing where it needs another one."""
    try:
        return space.notes(texts)
    except UserError:
        return ()


def variants(space: Space) -> Iterator[tuple[str, Recipe]]:
    """Key -> a recipe for each end of its range, with the others at their defaults where possible."""
    for one in space.dimensions:
        for text in one.range.ends():
            yield one.key, _first_that_loads(space, one, text)


def preflight(space: Space, reporter: Reporter = SILENT) -> Splits:
    """Check that the trials can be trained, and are scored on the same rows; returns the rows.

    Raises:
        UserError: a model does not fit a value, or a key changes the rows that trials are compared on.
    """
    loading.prepare_libraries()
    defaults = space.defaults
    splits = load_splits(defaults.data, defaults.task, reporter)
    problems: list[str] = []
    if not splits.validation:
        problems.append("data: has no validation rows, by which a search chooses; set data.validation_share")
    tasks: dict[str, Task] = {}
    seen = set()
    for key, recipe in (("", defaults), *variants(space)):
        if key.partition(".")[0] in ROWS:
            problems += _of_rows(key, recipe, defaults, splits)
        if key.startswith("train.") or recipe.digest in seen:
            continue
        seen.add(recipe.digest)
        try:
            name = json.dumps([recipe.base.model_dump(mode="json"), recipe.task.as_dict()])
            if name not in tasks:
                tasks[name] = class_order.fitted(recipe.task, recipe.base, splits, reporter)
            params_of(recipe, tasks[name])
        except UserError as error:
            problems += [f"--search: {problem}" if key else problem for problem in error.problems]
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return splits


def _of_rows(key: str, recipe: Recipe, defaults: Recipe, splits: Splits) -> list[str]:
    """A problem if a value changes the rows that trials are scored on, or their metric."""
    if recipe.task.primary != defaults.task.primary:
        return [f"--search: {key}: changes the metric, so trials could not be compared; search another key"]
    found = load_splits(recipe.data, recipe.task)
    if (found.validation, found.test) == (splits.validation, splits.test):
        return []
    return [
        f"--search: {key}: changes the validation or test rows, so trials could not be compared; search another key"
    ]
