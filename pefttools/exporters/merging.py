"""The change folded into plain weights, and into which: a quantised base offers two, and the better one is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pefttools.errors import UserError
from pefttools.exporters.base import LOGITS, Exporter
from pefttools.recipe import Recipe
from pefttools.run import On, Trained, load

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from pefttools.exporters.proof import Proof

ROUTES: tuple[On, ...] = ("dequantised", "full")


def refuse_unmergeable(to: str, recipe: Recipe) -> None:
    """Raises UserError when the recipe's strategy does not fold into plain weights."""
    strategy = recipe.strategy
    if not strategy.mergeable:
        raise UserError(f"--to {to}: {strategy.name} cannot be merged: {strategy.why_not_merged}")


class MergingExporter(Exporter):
    """Writes what is left when the change is folded into plain weights."""

    def refuse(self, recipe: Recipe) -> None:
        refuse_unmergeable(self.name, recipe)

    def prepare(self, trained: Trained, proof: Proof) -> tuple[nn.Module, dict[str, Any]]:
        return merged(trained, proof)


def merged(trained: Trained, proof: Proof) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The trained model as a plain one in fp32, and what was measured on the way; uses up the trained one.

    A quantised base is merged into what its quantised weights stand for and into the full-precision base; the manifest
    says both errors, and the nearer to the trained model is taken.
    """
    kind = trained.recipe.base.quantize
    if not kind:
        return _plain(trained), {}
    best, routes = None, {}
    for route in ROUTES:
        model = _plain(load(trained.path, on=route))
        routes[route] = {"max_logit_error": proof.error(model), proof.metric: proof.score(model)}
        if best is None or routes[route]["max_logit_error"] < routes[best[0]]["max_logit_error"]:
            best = (route, model)
    assert best is not None
    allowed = LOGITS[kind] * max(1.0, proof.largest)
    if not routes[best[0]]["max_logit_error"] <= allowed:
        told = ", ".join(f"{name} base {found['max_logit_error']:.3g}" for name, found in routes.items())
        raise UserError(f"export: merging changes the logits by more than the {allowed:.3g} {kind} allows: {told}")
    return best[1], {"routes": routes, "route": best[0]}


def _plain(trained: Trained) -> PreTrainedModel:
    return trained.task.plain(trained.recipe.strategy.merge(trained.model)).eval()
