"""The change folded into plain weights, and into which: a quantised base offers two, and the better one is taken."""

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
"""`base.quantize` -> how far merging into plain weights may move a logit, in parts of the largest one.

Quantised bases compute in fp32; int8 rounds what meets the weights too, by 0.19, which no merged model can repeat.
"""


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

    @classmethod
    def sentences(cls, manifest: Mapping[str, Any]) -> Iterator[str]:
        for route, found in manifest.get("routes", {}).items():
            taken = " (taken)" if route == manifest["route"] else ""
            scores = "".join(f"; {name} {value:.4f}" for name, value in found.items() if not name.endswith("_error"))
            yield (
                f"merged into the {route} base{taken}: largest logit difference {found['max_logit_error']:.2g}{scores};"
                f" merging itself {found['merge_error']:.2g}"
            )


def merged(trained: Trained, proof: Proof) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The trained model as a plain one in fp32, and what was measured on the way; uses up the trained one.

    A quantised base is merged into what its quantised weights stand for and into the full-precision base. Either merge
    must answer like the adapter beside that base; how far each is from the trained model, whose arithmetic is quantised
    too, is told, and the nearer is taken.

    Raises:
        UserError: a merge changes answers, or none is near the trained model.
    """
    kind = trained.recipe.base.quantize
    if not kind:
        return _plain(trained), {}
    best, routes = None, {}
    for route in ROUTES:
        put = load(trained.path, on=route)
        beside = proof.answers(put.model)
        model = _plain(put)
        answers = proof.answers(model)
        found = {"max_logit_error": verify.gap(answers, proof.logits), "merge_error": verify.gap(answers, beside)}
        allowed = EXACT * proof.scale
        if not found["merge_error"] <= allowed:  # a NaN is refused too
            raise UserError(
                f"export: merging into the {route} base changes the logits by up to {found['merge_error']:.3g}; allowed"
                f" are {allowed:.3g}"
            )
        routes[route] = {**found, proof.metric: proof.score(model)}
        if best is None or found["max_logit_error"] < routes[best[0]]["max_logit_error"]:
            best = (route, model)
    assert best is not None
    route, model = best
    allowed = WITHOUT_QUANTISATION[kind] * max(1.0, proof.largest)
    if not routes[route]["max_logit_error"] <= allowed:
        told = ", ".join(f"{name} base {found['max_logit_error']:.3g}" for name, found in routes.items())
        raise UserError(
            f"export: without {kind} the logits differ from the trained model's by more than {allowed:.3g}: {told}"
        )
    return model, {"routes": routes, "route": route, "merge_error": routes[route]["merge_error"]}


def _plain(trained: Trained) -> PreTrainedModel:
    return trained.task.to_transformers(trained.recipe.strategy.merge(trained.model)).eval()
