"""Checkpoints: written completely or not at all; a resumed run continues bit for bit.

A checkpoint contains the trained parameters, the optimizer's state, every process's random states and the loop's
progress. It does not contain the base, which is loaded and wrapped again with the same seed. The best weights so far
have a folder of their own, which the checkpoint names, so that the two always match. Each folder has the hashes of its
files, and no file is a pickle.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pefttools import atomic, hashes
from pefttools.errors import UserError
from pefttools.objectives._composition import Composed
from pefttools.strategies.base import Strategy, restore, trained
from pefttools.training import state_files

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn


PROGRESS = "progress.json"
ADVICE = {
    "processes": "; a run continues exactly only on as many processes, so launch as many as before",
    "train.shard": "; continue with the value of before",
}
"""Condition of a run -> what to do when it has changed."""
DAMAGED = "damaged-"
"""Prefix of the name of a checkpoint that was set aside."""


@dataclass
class Progress:
    """Progress of the training loop."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    best_loss: float | None = None
    evals_without_improvement: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    """Duration of the loop with its evaluations and checkpoints."""
    cpu_seconds: float = 0.0
    """Processor time of the same, the sum over threads; it does not depend on what else runs on the machine."""
    step_seconds: float = 0.0
    """Duration of the steps alone."""
    tokens: int = 0
    recent: list[float] = field(default_factory=list)
    """Losses since the last line of metrics.jsonl."""
    recent_penalties: list[float] = field(default_factory=list)
    """Sums of penalties since then."""
    first_losses: list[float] = field(default_factory=list)
    """Losses of the first steps; a loss far above them has exploded."""
    last_losses: list[float] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    """Scores of the base before training."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Facts that a resumed run must not find changed: data, base, labels, precision, processes."""
    without_gradient: list[str] | None = None
    """Trained tensors that have had no gradient so far; None before the first step."""
    features: dict[str, Any] | None = None
    """`feature_cache.CachedFeatures.facts`; None before features were loaded or computed."""


def save(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    objectives: Composed,
    accelerator: Accelerator,
    number: int,
) -> None:
    """Write `folder/step-N`, then remove all but the last `number` checkpoints and the best weights that they name."""
    from pefttools.nn.sharding import gathered

    target = folder / f"step-{progress.step:08d}"
    part = folder / f".{target.name}.part"
    try:
        weights, optimizer_state = gathered((trained(model), optimizer.state_dict()), accelerator.is_main_process)
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            _save_weights(weights, part)
            state = {
                "optimizer": optimizer_state,
                "strategy": strategy.state(model),
                "objectives": objectives.state(),
                **({"loss_scale": scaler.state_dict()} if (scaler := accelerator.scaler) else {}),
            }
            state_files.save(part, "state", state)
            atomic.write_json(part / PROGRESS, asdict(progress))
        accelerator.wait_for_everyone()
        state_files.save(part, f"random-{accelerator.process_index}", _random_states())
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            hashes.write(part, part.iterdir())
            atomic.settle(part, target)
            _prune(folder, number)
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)  # on a full disk it takes the room that is needed to go on
        raise
    accelerator.wait_for_everyone()


def save_best(folder: Path, step: int, model: nn.Module, accelerator: Accelerator) -> None:
    """Write `folder/best-N`; a resumed run uses it only if a checkpoint names it."""
    from pefttools.nn.sharding import gathered

    weights = gathered(trained(model), accelerator.is_main_process)
    if accelerator.is_main_process:
        with atomic.new_folder(folder / best_name(step)) as part:
            _save_weights(weights, part)
            hashes.write(part, part.iterdir())
    accelerator.wait_for_everyone()


def load_best(folder: Path, step: int, model: nn.Module) -> None:
    """Load the best weights into the model."""
    _load_weights(model, folder / best_name(step))


def best_name(step: int) -> str:
    return f"best-{step:08d}"


def newest_first(folder: Path) -> list[Path]:
    """All complete checkpoints."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=step_of, reverse=True)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return next(iter(newest_first(folder)), None)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def damaged(folder: Path) -> dict[Path, str]:
    """The checkpoints that are newer than the newest intact one, the newest first, and what is wrong with each."""
    found = {}
    for checkpoint in newest_first(folder):
        problem = hashes.damage(checkpoint)
        if problem is None and (best := _progress(checkpoint)["best_step"]):
            problem = hashes.damage(folder / best_name(best))
            problem = problem and f"{problem} in {best_name(best)}, its best weights"
        if problem is None:
            break
        found[checkpoint] = problem
    return found


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not used again; it stays until the run is finished."""
    aside = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    objectives: Composed,
    num_steps: int,
    conditions: dict[str, Any],
    scaler: torch.amp.GradScaler | None,
) -> Progress:
    """Restore the weights and all states but the random ones; returns the loop's progress.

    Raises:
        UserError: a condition has changed since the run began.
    """
    progress = Progress(**_progress(checkpoint))
    if changed := [n for n, was in progress.conditions.items() if conditions[n] != was]:
        raise UserError(
            *(
                f"--resume: {n} was {progress.conditions[n]!r} when the run began, but is {conditions[n]!r} now"
                f"{ADVICE.get(n, '')}"
                for n in changed
            )
        )
    state = state_files.load(checkpoint, "state")
    _load_weights(model, checkpoint)
    optimizer.load_state_dict(_shared(state["optimizer"], optimizer))
    strategy.set_state(model, state["strategy"], num_steps)
    objectives.load_state(state["objectives"])
    if scaler is not None:
        scaler.load_state_dict(state["loss_scale"])
    return progress


def _shared(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A state of an optimizer, in which this process has its share of tensors whose weights are shared."""
    from pefttools.nn.sharding import share_like

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    shared = {
        number: {
            name: share_like(value, weights[number])
            if getattr(value, "shape", None) == weights[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": shared}


def load_random_states(checkpoint: Path, process_index: int) -> None:
    """Restore the random states; call this last, just before the next step."""
    import numpy
    import torch

    states = state_files.load(checkpoint, f"random-{process_index}")
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))


def _random_states() -> dict[str, Any]:
    import numpy
    import torch

    name, keys, position, has_gauss, gauss = cast(
        "tuple[str, numpy.ndarray, int, int, float]", numpy.random.get_state()
    )
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None,
        "numpy": (name, keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def _save_weights(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: p.detach().contiguous() for name, p in weights.items()}, folder / "trained.safetensors")


def _load_weights(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import load_file

    restore(model, load_file(folder / "trained.safetensors"), str(folder))


def _progress(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / PROGRESS).read_text("utf-8"))


def _prune(folder: Path, number: int) -> None:
    """Remove everything but the last checkpoints, the best weights that they name, and damaged checkpoints."""
    last = newest_first(folder)[:number]
    keep = {path.name for path in last} | {best_name(_progress(path)["best_step"]) for path in last}
    for path in folder.iterdir():
        if path.name not in keep and not path.name.startswith(DAMAGED):
            shutil.rmtree(path)
