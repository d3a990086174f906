"""layer_matching: the student's hidden states and attention follow a teacher's, layer by layer (Jiao et al. 2020).

TinyBERT's loss is the sum over mapped layers of MSE(W·h_student, h_teacher) and MSE(attention_student,
attention_teacher), with the embeddings as layer 0. W is learned where the widths differ, otherwise left out. Its two
stages are `steps` (only this loss, with `task_weight=0`) followed by the task's loss or `distillation`. The paper
compares attention scores before the softmax; here they are compared after it, as transformers returns them.

The loss of a row is the mean over its tokens and features, times the row's number of targets, because losses are summed
over targets. The teacher runs in every step, without gradients: its hidden states would be too large to cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from pefttools.errors import UserError
from pefttools.nn import module_paths
from pefttools.objectives import _recording, _teacher
from pefttools.objectives.base import NUMBER, Batch, BoundObjective, Context, Forward, Loaded, Objective
from pefttools.sources import absolute

if TYPE_CHECKING:
    from torch import Tensor

    from pefttools.strategies.base import Strategy
    from pefttools.tasks.base import Task


class LayerMatching(Objective):
    """Settings of layer_matching: the teacher, the layers, and the weights of the losses."""

    reuses_features: ClassVar[bool] = False
    reads_numbers: ClassVar[bool] = True
    reads_hidden_states: ClassVar[bool] = True
    sample_settings: ClassVar[Mapping[str, Any]] = {"teacher": "a run"}

    teacher: str
    """A finished run, an exported folder, or a model with the task's head, with the student's tokenizer."""
    layer_map: Mapping[int, int] | None = None
    """Number of a student's block, from 1 -> number of a teacher's; 0 is the embeddings. By default spread evenly."""
    hidden: float = Field(default=1.0, ge=0)
    """Weight of the hidden states."""
    attention: float = Field(default=1.0, ge=0)
    """Weight of the attention probabilities; both models need the same number of heads."""
    task_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss that this objective is added to, as long as layers are matched."""
    steps: int | None = Field(default=None, ge=1)
    """Number of first steps in which layers are matched; null matches them in all."""
    projection_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of W (Adam)."""

    @field_validator("teacher")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)

    def problem(self, task: Task, strategy: Strategy) -> str | None:
        del strategy
        if not self.hidden and not self.attention:
            return "hidden and attention are both 0, so nothing is matched"
        if not self.task_weight and self.steps is None:
            return "with task_weight=0 the task is never learned; set steps, after which its loss counts"
        if task.draws_inputs:
            return f"task={task.name} draws or packs the inputs of every step, so a row's targets cannot be counted"
        return None

    def bind(self, context: Context) -> BoundObjective:
        if context.encoded is None:
            return BoundObjective()
        key = f"objectives.{self.name}"
        teacher = _teacher.load_teacher(self.teacher, context, f"{key}.teacher")
        if teacher.tokenizer.get_vocab() != context.base.tokenizer.get_vocab():
            raise UserError(
                f"{key}.teacher: {self.teacher} has another tokenizer than {context.base.source}, so their tokens"
                " cannot be compared; use objectives=distillation, or a teacher with the same tokenizer"
            )
        if getattr(context.base.model.config, "is_encoder_decoder", False):
            raise UserError(f"{key}: {context.base.source} is an encoder-decoder, whose layers cannot be matched yet")
        return _Matched(self, context, teacher, self._mapped(context, teacher))

    def _mapped(self, context: Context, teacher: Loaded) -> dict[int, int]:
        """The layer map. Raises UserError when it is beyond the layers."""
        mine, theirs = (len(module_paths.blocks(model)) for model in (context.model, teacher.model))
        chosen = self.layer_map or {0: 0, **{i: i * theirs // mine for i in range(1, mine + 1)}}
        for student, other in chosen.items():
            for number, whose, most in ((student, "student", mine), (other, "teacher", theirs)):
                if not 0 <= number <= most:
                    raise UserError(
                        f"objectives.{self.name}.layer_map: the {whose} has layers 0 to {most}, so there is no {number}"
                    )
        return dict(chosen)


class _Matched(BoundObjective):
    def __init__(self, settings: LayerMatching, context: Context, teacher: Loaded, layers: dict[int, int]) -> None:
        import torch

        assert context.encoded is not None
        self.settings, self.context, self.teacher, self.layers = settings, context, teacher, layers
        self.num_targets = torch.tensor(context.encoded["num_targets"][:])
        self.step = 0
        if settings.attention:
            for model in (context.model, teacher.model):
                _recording.compute_probabilities(model)
        widths = [module_width(model) for model in (context.model, teacher.model)]
        device = next(context.model.parameters()).device
        self.projections = torch.nn.ModuleDict()
        if settings.hidden and widths[0] != widths[1]:
            self.projections.update({str(i): torch.nn.Linear(*widths, bias=False, device=device) for i in layers})
        parameters = list(self.projections.parameters())
        self.optimizer = torch.optim.Adam(parameters, settings.projection_lr) if parameters else None

    @property
    def is_on(self) -> bool:
        return self.settings.steps is None or self.step < self.settings.steps

    @property
    def partial_steps(self) -> int:
        return 0 if self.settings.task_weight else self.settings.steps or 0

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        import torch

        if not self.is_on:
            return self.inner(forward, batch)
        with _recording.recording(self.context.model, [*self.layers]) as mine:
            plain = self.inner(forward, batch)
        with torch.no_grad(), _recording.recording(self.teacher.model, [*self.layers.values()]) as theirs:
            self.teacher.model(**self.context.task.inputs_of(batch))
        mask, weights = self._weights(batch)
        total = self.settings.task_weight * plain
        for student, other in self.layers.items():
            if self.settings.hidden:
                hidden, wanted = mine.hidden[student][:, -mask.shape[1] :], theirs.hidden[other]
                projected = self.projections[str(student)](hidden) if self.projections else hidden
                by_token = (projected.float() - wanted.float()).square().mean(-1)
                total = total + self.settings.hidden * _weighted(by_token, mask, weights)
            if self.settings.attention and student:
                total = total + self.settings.attention * self._attention(mine, theirs, student, mask, weights)
        return total

    def _attention(
        self, mine: _recording.Recorded, theirs: _recording.Recorded, student: int, mask: Tensor, weights: Tensor
    ) -> Tensor:
        """The weighted loss of one layer's attention probabilities, shape ()."""
        found, wanted = mine.attention.get(student), theirs.attention.get(self.layers[student])
        name = f"objectives.{self.settings.name}.attention"
        if found is None or wanted is None:
            raise UserError(f"{name}: the attention probabilities of this model cannot be read; set it to 0")
        found = found[..., -mask.shape[1] :, -mask.shape[1] :]  # without virtual tokens
        if found.shape != wanted.shape:
            raise UserError(
                f"{name}: the student has {found.shape[1]} heads and the teacher {wanted.shape[1]}; set it to 0"
            )
        seen = mask[:, None, None, :]
        difference = ((found.float() - wanted.float()) * seen).square().sum(-1) / seen.sum(-1)
        return _weighted(difference.mean(1), mask, weights)

    def _weights(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The attention mask of each sequence, (sequences, tokens), and its weight, (sequences,)."""
        import torch

        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids)).reshape(-1, ids.shape[-1])
        numbers = self.num_targets[batch[NUMBER].cpu()].to(ids.device)
        each = len(mask) // len(numbers)  # sequences of a row, for tasks with several
        return mask, numbers.repeat_interleave(each) / each

    def abandon_step(self) -> None:
        if self.optimizer:
            self.optimizer.zero_grad()

    def updated(self) -> None:
        import torch

        self.step += 1
        if self.optimizer is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in self.projections.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= torch.distributed.get_world_size()  # as DDP averages the model's gradients
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        optimizer = self.optimizer.state_dict() if self.optimizer else {}
        return {
            "teacher": self.teacher.key,
            "step": self.step,
            "projections": self.projections.state_dict(),
            "optimizer": optimizer,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        _teacher.refuse_another(self.settings.name, self.teacher.key, state)
        self.step = state["step"]
        self.projections.load_state_dict(state["projections"])
        if self.optimizer:
            self.optimizer.load_state_dict(state["optimizer"])


def module_width(model: Any) -> int:
    """The width of the model's hidden states."""
    return model.config.get_text_config().hidden_size


def _weighted(by_token: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """The mean over each sequence's tokens, (sequences, tokens) -> weighted sum over sequences, shape ()."""
    return ((by_token * mask).sum(-1) / mask.sum(-1).clamp(min=1) * weights).sum()
