"""Merging: the trained change is added to the base's weights.

For a quantised base there are two sets of weights to merge into; the one nearer to the trained model is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.exporters import verify
from pefttools.exporters.base import EXACT, Exporter
from pefttools.recipe.recipe import Recipe
from pefttools.training.run import On, Trained, load

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from pefttools.exporters.proof import Proof

ROUTES: tuple[On, ...] = ("dequantised", "full")
WITHOUT_QUANTISATION: Mapping[str, float] = {"nf4": 1e-3, "fp4": 1e-3, "int8": 3e-1}
"""`base.quantize` -> how far a logit may change by merging into unquantised weights, as a share of the largest logit.

Quantised bases compute in fp32. int8 rounds activations too, which changes logits by 0.19; a merged model cannot
reproduce that.
"""


def refuse_unmergeable(to: str, recipe: Recipe) -> None:
    """Raises UserError when the recipe's strategy cannot be merged into the base's weights."""
    strategy = recipe.strategy
    if not strategy.mergeable:
        raise UserError(f"--to {to}: {strategy.name} cannot be merged: {strategy.why_not_merged}")


class MergingExporter(Exporter):
    """Writes the merged model."""

    def refuse(self, recipe: Recipe) -> None:
        refuse_unmergeable(self.name, recipe)

    def prepare(self, trained: Trained, proof: Proof) -> tuple[nn.Module, dict[str, Any]]:
        return merged(trained, proof)

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        for route, found in manifest.get("routes", {}).items():
            used = " (used)" if route == manifest["route"] else ""
            scores = "".join(f"; {name} {value:.4f}" for name, value in found.items() if not name.endswith("_error"))
            yield (
                f"merged into the {route} base{used}: largest logit difference {found['max_logit_error']:.2g}{scores};"
                f" merging alone changes logits by {found['merge_error']:.2g}"
            )


def merged(trained: Trained, proof: Proof) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The trained model merged into a plain transformers model in fp32, and what was measured; consumes `trained`.

    If the base is quantised, the adapter is merged twice: into the dequantised weights and into the full-precision
    ones. Each merged model must have the logits of the adapter on the same base. The manifest reports how far each is
    from the trained model, whose arithmetic is quantised too; the nearer one is returned.

    Raises:
        UserError: merging changes the logits, or neither merged model is near the trained one.
    """
    kind = trained.recipe.base.quantize
    if not kind:
        return _plain(trained), {}
    best, routes = None, {}
    for route in ROUTES:
        unmerged = load(trained.path, on=route)
        before = proof.logits_of(unmerged.model)
        model = _plain(unmerged)
        after = proof.logits_of(model)
        found = {"max_logit_error": verify.gap(after, proof.logits), "merge_error": verify.gap(after, before)}
        allowed = EXACT * proof.scale
        if not found["merge_error"] <= allowed:  # a NaN is refused too
            raise UserError(
                f"export: merging into the {route} base changes the logits by up to {found['merge_error']:.3g}; at most"
                f" {allowed:.3g} is allowed; nothing was written"
            )
        routes[route] = {**found, proof.metric: proof.score(model)}
        if best is None or found["max_logit_error"] < routes[best[0]]["max_logit_error"]:
            best = (route, model)
    assert best is not None
    route, model = best
    allowed = WITHOUT_QUANTISATION[kind] * max(1.0, proof.largest)
    if not routes[route]["max_logit_error"] <= allowed:
        errors = ", ".join(f"{name} base {found['max_logit_error']:.3g}" for name, found in routes.items())
        raise UserError(
            f"export: merged into unquantised weights the model's logits differ from those of the {kind} model by more"
            f" than the allowed {allowed:.3g}: {errors}; use --to adapter"
        )
    return model, {"routes": routes, "route": route, "merge_error": routes[route]["merge_error"]}


def _plain(trained: Trained) -> PreTrainedModel:
    return trained.task.to_transformers(trained.recipe.strategy.merge(trained.model)).eval()
