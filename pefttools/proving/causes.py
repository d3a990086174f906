"""What is wrong with an artifact, in words, from the comparisons of its tensors."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pefttools.proving.tensors import SHARE, Comparison

BLOCK = re.compile(r"\.(\d+)\.")
QUANTISED = (2e-3, 0.3)
"""Range of ‖M − E‖/‖E‖ of matrices that were quantised to 8 to 3 bits."""
EMBEDDINGS = ("embed", "wte", "shared", "lm_head", "wpe")


@dataclass(frozen=True)
class Facts:
    """What the causes depend on besides the tensors."""

    scaling: float | None = None
    """The adapter's factor α/r (α/√r with rsLoRA), if all its matrices have the same."""
    ranks: Sequence[int] = ()
    heads: Sequence[str] = ()
    """Paths of the modules that the adapter saves whole (`modules_to_save`)."""
    without_source: Sequence[str] = ()
    """Tensors that neither the base nor the adapter has; their values are random."""
    rslora: bool = False
    pairs_tied: tuple[bool | None, bool | None] = (None, None)
    """Whether output layer and input embeddings are one tensor, in the artifact and in the right model."""


def causes(found: Sequence[Comparison], facts: Facts) -> list[str]:
    """What differs and why, one sentence each, the likeliest cause first; empty if all tensors are right."""
    heads = tuple(f"{path}." for path in facts.heads)
    head = [each for each in found if each.name.startswith(heads)] if heads else []
    body = [each for each in found if each not in head]
    sentences = [*_shapes(found)]
    sentences += _of_base(body) or [*_of_change(body, facts)]
    sentences += _of_head(head)
    artifact_tied, right_tied = facts.pairs_tied
    if None not in facts.pairs_tied and artifact_tied != right_tied:
        state = "shares its weights with" if artifact_tied else "has other weights than"
        sentences.append(
            f"the artifact's output layer {state} its input embeddings, which is not so in the base with the adapter"
            " (tie_word_embeddings)"
        )
    if facts.without_source:
        sentences.append(
            f"neither the base nor the adapter has {_some(facts.without_source)}, so nothing can be proven about it;"
            " save the head with the adapter (modules_to_save)"
        )
    return sentences


def _shapes(found: Iterable[Comparison]) -> Iterator[str]:
    for each in found:
        if each.kind == "missing":
            yield f"the artifact lacks {each.name}"
        if each.kind == "shape":
            assert each.shapes
            (has, *_), (wanted, *_) = each.shapes
            if has != wanted and any(word in each.name for word in EMBEDDINGS):
                yield (
                    f"{each.name} has {has:,} rows instead of {wanted:,}: the embeddings were not resized to the tokens"
                    " that the adapter was trained with"
                )
            else:
                yield f"{each.name} has the shape {each.shapes[0]} instead of {each.shapes[1]}"


def _of_base(body: Sequence[Comparison]) -> list[str]:
    """The sentence on a base that is another one, or was quantised before it was merged; none if the base is right."""
    wrong = [each for each in body if each.kind in ("changed", "other")]
    matrices = [each for each in body if each.dims >= 2 and each.kind not in ("missing", "shape")]
    linear = [each for each in matrices if not any(word in each.name for word in EMBEDDINGS)]
    wrong_linear = [each for each in linear if each in wrong]
    vectors = [each for each in body if each.dims == 1 and each.kind in ("changed", "other")]
    if not linear or len(wrong_linear) < 0.9 * len(linear):
        return []
    errors = [each.error for each in wrong_linear]
    low, high = QUANTISED
    if not vectors and all(low <= error <= high for error in errors):
        return [
            f"the base was quantised before it was merged: {len(wrong_linear)} matrices differ by"
            f" {statistics.median(errors):.1%}, while the vectors are equal; merge into the base in its own precision"
        ]
    return [
        f"the artifact was made of another base: {len(wrong)} of {len(body)} tensors differ from BASE beyond the"
        f" adapter's change (by {statistics.median(each.error for each in wrong):.1%} in the median)"
    ]


def _of_change(body: Sequence[Comparison], facts: Facts) -> Iterator[str]:
    adapted = [each for each in body if each.adapted and each.share is not None]
    lacking = [each for each in adapted if each.kind == "lacking"]
    scaled = [each for each in adapted if each.kind == "scaled"]
    if lacking and len(lacking) == len(adapted):
        yield f"the adapter is not in the artifact: all {len(adapted)} tensors that it changes are the base's"
    elif lacking:
        yield (
            f"the adapter's change is missing in {len(lacking)} of {len(adapted)} tensors"
            f" ({_blocks(lacking) or _some([each.name for each in lacking])})"
        )
    if scaled:
        shares = [each.share for each in scaled if each.share is not None]
        share = statistics.median(shares)
        if max(shares) - min(shares) <= 4 * SHARE * abs(share):
            where = "" if len(scaled) + len(lacking) == len(adapted) else f" in {len(scaled)} of {len(adapted)} tensors"
            yield f"{share:.3g} times the adapter's change is in the artifact{where}: {_reason(share, facts)}"
        else:
            yield (
                f"{min(shares):.3g} to {max(shares):.3g} times the adapter's change is in {len(scaled)} of"
                f" {len(adapted)} tensors: their scaling differs (rank_pattern or alpha_pattern was dropped)"
            )
    for kind, what in (("other", "have values that neither the base nor the adapter explains"),
                       ("changed", "differ from the base although the adapter does not change them")):  # fmt: skip
        if names := [each.name for each in body if each.kind == kind]:
            yield f"{len(names)} tensors {what} ({_some(names)})"


def _reason(share: float, facts: Facts) -> str:
    """What may have caused that this multiple of the change is in an artifact."""

    def near(value: float) -> bool:
        return abs(share - value) <= 2 * SHARE * abs(value)

    reasons = []
    if facts.scaling and facts.scaling != 1 and near(1 / facts.scaling):
        reasons.append(f"the scaling α/r = {facts.scaling:g} was dropped")
    if any(near(rank**-0.5 if facts.rslora else rank**0.5) for rank in facts.ranks if rank > 1):
        used, right = ("α/r", "α/√r") if facts.rslora else ("α/√r", "α/r")
        reasons.append(f"{used} was used instead of {right} (rsLoRA)")
    if near(2):
        reasons.append("it was merged twice, or α was doubled")
    if near(0.5):
        reasons.append("α was halved, or r doubled")
    if near(-1):
        reasons.append("it was subtracted (unmerged from a model that it was not in)")
    return ", or ".join(reasons) or "another scaling (α/r) was used"


def _of_head(head: Sequence[Comparison]) -> Iterator[str]:
    wrong = [each for each in head if each.kind not in ("right", "missing", "shape")]
    lacking = [each for each in wrong if each.kind == "lacking"]
    if wrong and len(lacking) == len(wrong):
        names = _some([each.name for each in wrong])
        yield f"the head is the base's, not the one that was trained with the adapter ({names})"
    elif wrong:
        yield (
            f"the head is neither the adapter's nor the base's ({_some([each.name for each in wrong])} differ by"
            f" {max(each.error for each in wrong):.0%}): it comes from another run, or was initialised anew"
        )


def _blocks(found: Sequence[Comparison]) -> str:
    """`block 3`, or `blocks 3, 5`; empty where a name has no number."""
    numbers = [match[1] for each in found if (match := BLOCK.search(each.name))]
    if len(numbers) != len(found):
        return ""
    different = sorted({int(number) for number in numbers})
    return f"block{'s' if len(different) > 1 else ''} {', '.join(map(str, different))}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
