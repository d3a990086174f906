"""Late candidates: if time is left after the finals, candidates that the plan left out get a trial, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pefttools.bench.adviser import Adviser, Config, badness, score_text
from pefttools.bench.halving import ETA, Halving

Finals = dict[Config, list[dict[str, Any]]]


def challenged(adviser: Adviser, plan: Halving, finals: Mapping[Config, list[dict[str, Any]]]) -> Finals:
    """The finals and the best late candidates, which were tried with default learning rates for the first rung."""
    steps, clock = plan.steps_per_epoch, adviser.clock
    epochs = plan.rungs[0][0] if plan.rungs else plan.epochs / ETA**2
    tried: list[tuple[float, float, Config]] = []
    for candidate in sorted(adviser.left_out, key=lambda c: c.step_seconds):
        config = Config(candidate, candidate.default_lr)
        if candidate.seconds(epochs, steps) + candidate.seconds(plan.epochs, steps) > clock.left:
            continue
        adviser.reporter.note(f"there is time left to try {candidate.label}")
        if record := adviser.short_trial(config, epochs):
            adviser.ruled_out[candidate.label] = f"{score_text(record)} after {epochs:.2g} epochs"
            tried.append((*badness(record), config))
    found: Finals = dict(finals)
    for _, _, config in sorted(tried, key=lambda one: one[:2]):
        if config.candidate.seconds(plan.epochs, steps) > clock.left:
            continue
        if records := adviser.finals([config], plan):
            found |= records
            del adviser.ruled_out[config.candidate.label]
    return found
