"""The models of a server by name: reading rows, predicting, embeddings of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pefttools.data.fields import is_visible
from pefttools.errors import UserError, unknown
from pefttools.inference.confidence import Confidence, calibration_of
from pefttools.inference.optimize import Precision
from pefttools.inference.predictor import Predictor, is_artifact, load_predictor, load_predictors
from pefttools.inference.unlabeled import FieldColumns, TextRow
from pefttools.reporter import SILENT, Reporter
from pefttools.training.calibrated import Calibration
from pefttools.training.run import Run

if TYPE_CHECKING:
    from pefttools.data.splitting import Row


@dataclass(frozen=True)
class Served:
    """One model of the server."""

    path: Path
    predictor: Predictor
    calibration: Calibration | None = None
    """That of the weights in memory, whatever happens to its file later."""

    def read(self, values: Sequence[dict[str, Any] | str]) -> list[Row | UserError]:
        """The rows of a request, each of them or an error.

        Raises:
            UserError: the rows lack a field that the model needs.
        """
        raws: list[Any] = [TextRow(text=one) if isinstance(one, str) else one for one in values]
        columns = FieldColumns(self.predictor.recipe)
        columns.fit(raws)
        return [columns.read(number, raw) for number, raw in enumerate(raws, 1)]


@dataclass(frozen=True)
class Models:
    """The models by name."""

    served: dict[str, Served]
    embeds: bool = False

    @classmethod
    def load(
        cls, paths: Sequence[Path], precision: Precision, reporter: Reporter = SILENT, embeds: bool = False
    ) -> Models:
        """Load runs and artifacts; runs on one base share its weights.

        Args:
            embeds: whether `embeddings` will be wanted; then the last block computes all tokens.

        Raises:
            UserError: a folder is neither, or two have the same name.
        """
        folders = [path.resolve() for path in paths]
        if twice := [str(path) for i, path in enumerate(paths) if folders[i] in folders[:i]]:
            raise UserError(f"serve: {', '.join(twice)} is named twice")
        names = [path.absolute().name for path in paths]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(
                f"serve: {len(names)} models need {len(names)} names, but {', '.join(repeated)} names several folders;"
                " rename one"
            )
        predictors = _loaded(paths, precision, reporter, embeds)
        for one in predictors if embeds else ():
            _refuse_unless_embedding(one)
        found = {
            name: Served(path, one, calibration_of(path))
            for name, path, one in zip(names, paths, predictors, strict=True)
        }
        return cls(found, embeds)

    def get(self, name: str | None) -> Served:
        """The model of that name; the only one if there is no name. Raises UserError when there is none."""
        if name is None and len(self.served) == 1:
            return next(iter(self.served.values()))
        if name is None:
            raise UserError(f"model: is required, because there are several: {', '.join(self.served)}")
        if name not in self.served:
            raise UserError(f"model: {unknown('model', name, [*self.served])}")
        return self.served[name]

    def compute(self, name: str, rows: Sequence[Any]) -> list[Any]:
        """A prediction or an error for each row of a batch: a row to predict on, or a `Text` to embed."""
        predictor = self.served[name].predictor
        texts = [i for i, row in enumerate(rows) if isinstance(row, Text)]
        others = [i for i, row in enumerate(rows) if not isinstance(row, Text)]
        results: list[Any] = [None] * len(rows)
        if others:
            answers, _ = predictor.attempt([rows[i] for i in others])
            for i, answer in zip(others, answers, strict=True):
                results[i] = answer
        if texts:
            for i, vector in zip(texts, embeddings(predictor, [rows[i] for i in texts]), strict=True):
                results[i] = vector
        return results

    def change(self, name: str, confidence: Confidence | None) -> Any:
        """What the options on confidence change in a model's predictions; None for nothing. Raises UserError."""
        served = self.served[name]
        return confidence.change(served.path, served.predictor.task, served.calibration) if confidence else None


class Text(str):
    """A text to embed."""


def _loaded(paths: Sequence[Path], precision: Precision, reporter: Reporter, embeds: bool) -> list[Predictor]:
    runs = [path for path in paths if not is_artifact(path)]
    bases = {path: Run.open(path).result()["base"]["sha256"] for path in runs}
    if len(runs) == len(paths) > 1 and len({*bases.values()}) == 1:
        return load_predictors(paths, precision, reporter, whole_outputs=embeds)
    return [load_predictor(path, precision, reporter, whole_outputs=embeds) for path in paths]


def embeddings(predictor: Predictor, texts: Sequence[str]) -> list[list[float] | UserError]:
    """A vector of length 1 for each text, the mean of the last block's outputs over tokens; an error for a text that is
    empty or longer than what the model reads.

    Args:
        predictor: loaded with `whole_outputs`.
    """
    tokenizer = predictor.tokenizer
    limit = min(predictor.task.max_length, tokenizer.model_max_length)
    whole: Any = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    found: list[Any] = [
        UserError("is empty") if not is_visible(text) or not ids
        else UserError(f"has {len(ids):,} tokens; the model reads at most {limit:,}") if len(ids) > limit
        else ids
        for text, ids in zip(texts, whole, strict=True)
    ]  # fmt: skip
    good = [i for i, one in enumerate(found) if not isinstance(one, UserError)]
    for i, vector in zip(good, _vectors(predictor, [found[i] for i in good]) if good else [], strict=True):
        found[i] = vector
    return found


def _vectors(predictor: Predictor, ids: Sequence[list[int]]) -> list[list[float]]:
    """The vectors of texts that are tokenised."""
    import torch

    model, pad = predictor.model, cast("int", predictor.tokenizer.pad_token_id)
    width = max(map(len, ids))
    device = next(model.parameters()).device
    padded: Any = torch.tensor([one + [pad] * (width - len(one)) for one in ids], device=device)
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in ids], device=device)
    with torch.no_grad():
        hidden = _backbone(model)(input_ids=padded, attention_mask=mask).last_hidden_state.float()
    weights = mask[..., None].float()
    means = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(means, dim=-1).tolist()


def _backbone(model: Any) -> Any:
    """The model without its head; of an encoder-decoder the encoder."""
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    return plain.get_encoder() if plain.config.is_encoder_decoder else plain.base_model


def _refuse_unless_embedding(predictor: Predictor) -> None:
    """Raises UserError when the model returns no vectors of tokens."""
    method = getattr(predictor.model, "active_peft_config", None)
    if method is not None and method.is_prompt_learning:
        raise UserError(
            f"--embeddings: {predictor.name} is trained in virtual tokens, which the outputs of its blocks do not show"
        )
    config: Any = getattr(predictor.model, "config", None)
    if config is None or not next(iter(predictor.model.parameters())).numel():
        raise UserError(
            f"--embeddings: {predictor.name} is not a torch model, so the outputs of its blocks are not known"
        )
