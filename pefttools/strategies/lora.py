"""lora: W + (α/r)·BA beside frozen matrices (Hu et al. 2022, eq. 3), through peft.

A starts Kaiming-uniform, B at zero, so the start is exact; merging multiplies out. Our default targets every
matrix of the blocks: at equal parameters, attention alone does worse ("LoRA Without Regret", 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from pefttools.errors import UserError, nearest
from pefttools.nn import find
from pefttools.strategies.base import PeftStrategy

if TYPE_CHECKING:
    from peft import PeftConfig

    from pefttools.models import Base


class Lora(PeftStrategy):
    """Rank, scale and place of the low-rank matrices."""

    default_lr: ClassVar[float] = 1e-3
    lr_range: ClassVar[tuple[float, float]] = (1e-4, 5e-3)

    rank: int = Field(default=8, ge=1)
    """r, the inner size of BA."""
    alpha: float = Field(default=16.0, gt=0)
    """α: BA is multiplied with α/r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    targets: tuple[str, ...] = ("all",)
    """`all` matrices of the blocks, or patterns: a module's last name (`query`) or a glob on its full path."""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def config(self, base: Base) -> PeftConfig:
        from peft import LoraConfig

        return LoraConfig(
            task_type=base.task_type,
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft's own annotation says int; it only multiplies
            lora_dropout=self.dropout,
            target_modules=self.target_paths(base),
            modules_to_save=list(base.head),
        )

    def target_paths(self, base: Base) -> list[str]:
        """Full paths of the matrices. Raises UserError when a pattern matches none or the rank exceeds one."""
        linears = find.linears(base.model)
        paths = linears
        if self.targets != ("all",):
            matches = find.matching(linears, self.targets)
            last_names = {p.rpartition(".")[2]: sum(q.endswith(p[p.rfind(".") :]) for q in linears) for p in linears}
            known = ", ".join(f"{name} ({count})" for name, count in last_names.items())
            problems = [
                f"strategy.targets: {pattern!r} matches no matrix of {base.source}"
                f"{f'; did you mean {match!r}?' if (match := nearest(pattern, last_names)) else '.'} There are: {known}"
                for pattern, found in matches.items()
                if not found
            ]
            if problems:
                raise UserError(*problems)
            chosen = {path for found in matches.values() for path in found}
            paths = [path for path in linears if path in chosen]
        sizes = {path: min(base.model.get_submodule(path).weight.shape) for path in paths}  # type: ignore[arg-type]
        smallest = min(paths, key=lambda path: sizes[path])
        if self.rank > sizes[smallest]:
            raise UserError(
                f"strategy.rank: {self.rank} is more than {smallest} allows, whose smaller side is {sizes[smallest]}"
            )
        return paths
