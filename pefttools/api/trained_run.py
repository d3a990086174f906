"""A finished run, as a program uses it: its scores and tables, predictions, exports and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pefttools import extras
from pefttools.api import rows
from pefttools.api.messages import in_python
from pefttools.api.settings import Overrides, as_texts
from pefttools.errors import UserError
from pefttools.progress import RichReporter
from pefttools.reporter import SILENT, Reporter

if TYPE_CHECKING:
    import pandas

    from pefttools.recipe.recipe import Recipe
    from pefttools.training.run import Trained

Precision = Literal["auto", "bf16", "fp32"]
LONGEST_NAME = 200
"""Characters of a text that may be the name of a file."""


def reporter_for(progress: bool) -> Reporter:
    """Notes, warnings and progress bars on stderr, or nothing."""
    return RichReporter() if progress else SILENT


class TrainedRun:
    """A finished run in its folder; everything is read from there when it is first used.

    Args:
        path: the run folder.
        progress: whether its methods show notes and progress on stderr.

    Raises:
        UserError: there is no finished run, or one of its files is damaged.
    """

    def __init__(self, path: str | Path, progress: bool = True) -> None:
        from pefttools.training.run import Run

        self._run = Run.open(Path(path))
        self._reporter = reporter_for(progress)
        self._predictors: dict[str, Any] = {}

    @property
    def path(self) -> Path:
        """The run folder, absolute."""
        return self._run.path

    @cached_property
    def recipe(self) -> Recipe:
        """Everything that the run depends on."""
        return self._run.recipe()

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json."""
        return self._run.result()

    @property
    def metrics(self) -> dict[str, Any]:
        """The scores on the test rows, or on the validation rows if there are no test rows (see `scored_on`)."""
        return dict(self.result[self.scored_on])

    @property
    def scored_on(self) -> str:
        """`test` or `validation`."""
        return "test" if self.result.get("test") else "validation"

    @cached_property
    def history(self) -> pandas.DataFrame:
        """A row for each logged step: step, progress, loss, lr …, and `validation.NAME` where the run was scored."""
        import pandas

        lines: dict[int, dict[str, Any]] = {}
        for line in self._run.lines():
            scores = {f"validation.{name}": value for name, value in line.get("validation", {}).items()}
            plain = {name: value for name, value in line.items() if name != "validation"}
            lines.setdefault(line["step"], {}).update({**plain, **scores})
        return pandas.DataFrame([*lines.values()])

    @cached_property
    def predictions(self) -> pandas.DataFrame:
        """The scored rows: their ids, the model's inputs (`text`), references and predictions."""
        import pandas

        ids, references, found = self._run.predictions()
        names = self.recipe.task.class_names
        shown = [
            {**one, "probabilities": dict(zip(names, one["probabilities"], strict=True))}
            if "probabilities" in one
            else one
            for one in found
        ]
        table = pandas.DataFrame(shown)
        table.insert(0, "id", ids)
        table.insert(1, "reference", references)
        scored = self._run.scored_rows()  # None for runs of older versions
        for name in reversed(self.recipe.task.inputs if scored else ()):
            values = [row.get(name) for row in scored.rows] if scored else []
            if name not in table and any(value is not None for value in values):
                table.insert(1, name, pandas.Series(values, dtype=object))
        return table

    @cached_property
    def trained(self) -> Trained:
        """The trained torch model (`.model`), its tokenizer and recipe."""
        from pefttools.training.run import load

        return load(self.path, self._reporter)

    def predict(
        self, data: Any, *, precision: Precision = "auto", keep: Sequence[str] | None = None, top_k: int | None = None,
        threshold: float | None = None, error_rate: float | None = None,
    ) -> Any:  # fmt: skip
        """Predictions in the rows' order. The model stays in memory for the next call.

        Args:
            data: a text, texts, dictionaries with the columns of the training rows, a DataFrame or another table.
            precision: `auto` is bf16 where the processor multiplies it natively; `evaluate` computes in fp32.
            keep: further columns to copy to the output.
            top_k: return this many of the likeliest classes instead of all probabilities.
            threshold: mark rows as unsure whose class is less probable than this.
            error_rate: mark rows as unsure so that at most this share has a wrong class without a mark.

        Returns:
            A dictionary for each row, with an `error` where a row has no prediction; a DataFrame with the same index
            for a DataFrame.

        Raises:
            UserError: the rows lack a column, or none of them could be predicted.
        """
        from pefttools.inference.confidence import Confidence
        from pefttools.inference.prediction import predict_rows

        options = (top_k, threshold, error_rate)
        wanted = None if options == (None, None, None) else Confidence(*options)
        found = list(predict_rows(
            self.path, _raws(data), self._reporter, precision, keep, confidence=wanted,
            load=lambda: self._predictor(precision),
        ))  # fmt: skip
        if isinstance(data, str):
            return found[0]
        if rows.kind(data) == "pandas.DataFrame":
            import pandas

            return pandas.DataFrame(found, index=data.index)
        return found

    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], *, temperature: float | None = None, top_p: float = 1.0,
        max_tokens: int | None = None, stop: Sequence[str] = (), seed: int = 0, base: bool = False,
    ) -> str:  # fmt: skip
        """A language model's reply to the last message.

        Args:
            messages: the user's message, or a conversation: a `role` and `content` each, the user's last.
            temperature: 0 takes the likeliest token; by default the recipe's.
            top_p: sample from the likeliest tokens whose probabilities add up to this.
            max_tokens: limit of the reply's tokens; by default the recipe's.
            stop: texts that end the reply.
            seed: of sampling.
            base: let the model before training reply, to compare the two.

        Raises:
            UserError: the model is no language model, a value or a message is invalid, or there is no room for a reply.
        """
        from pefttools.inference.conversation import Sampling, reply

        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        chosen = Sampling(temperature, top_p, max_tokens, tuple(stop), seed)
        return "".join(reply(self._base if base else self._predictor("auto"), given, chosen))

    @cached_property
    def _base(self) -> Any:
        from pefttools.inference.opponents import load_base

        return load_base(self.path, self._reporter)

    def _predictor(self, precision: Precision) -> Any:
        from pefttools.inference.predictor import load_predictor

        if precision not in self._predictors:
            self._predictors[precision] = load_predictor(self.path, precision, self._reporter)
        return self._predictors[precision]

    def evaluate(
        self, data: Any = None, *, errors: int | None = None, by: str | None = None, overrides: Overrides = ()
    ) -> dict[str, Any]:
        """Scores on other labelled rows; by default on the run's own test rows.

        Args:
            data: a path, DataFrame, table or list of dictionaries with the columns of the training rows.
            errors: also list this many of the worst predictions.
            by: also score the groups of rows with one value in this column.
            overrides: of the recipe's data, as in `train`.

        Raises:
            UserError: rows have labels that the model does not know, or a column is missing.
        """
        from pefttools.analysis.evaluation import evaluate

        texts = as_texts(overrides)
        with TemporaryDirectory() as scratch:
            if data is not None:
                texts.append(f"data.test={rows.written(data, Path(scratch), 'test')}")
            return evaluate(self.path, texts, self._reporter, errors, by)

    def export(self, to: str, out: str | Path | None = None, *, overwrite: bool = False, **settings: Any) -> Path:
        """Export it, and check in a new process that the artifact predicts like the trained model.

        Args:
            to: the exporter's name, as `merged`.
            out: the new folder; by default `RUN/export/TO`.
            overwrite: replace an artifact that is in the folder, once the new one is checked.
            settings: of the exporter, as `dtype="bfloat16"`.

        Returns:
            The folder; its `manifest.json` has what was checked.

        Raises:
            UserError: the artifact would not predict the same, or this run cannot be exported so.
        """
        from pefttools.api.session import refuse_unknown_elsewhere
        from pefttools.exporters.driver import export

        refuse_unknown_elsewhere(self.recipe)
        folder = Path(out) if out is not None else self.path / "export" / to
        with in_python(self.path):
            export(self.path, to, folder, self._reporter, as_texts(settings), overwrite)
        return folder

    def compare(self, *others: TrainedRun | str | Path) -> dict[str, Any]:
        """This run and others, side by side: settings, scores with intervals, and paired tests on the same rows.

        Raises:
            UserError: the runs have different tasks or no test rows in common.
        """
        return compare(self, *others, reporter=self._reporter)

    def report(self, file: str | Path | None = None) -> Path:
        """Write the page of this run; by default `report.html` in its folder.

        Raises:
            UserError: the run has no predictions, the file cannot be written, or the extra `charts` is not installed.
        """
        from pefttools.analysis import pages, run_report

        extras.require("report", extras.EXTRAS["charts"])
        out = Path(file) if file is not None else self.path / "report.html"
        pages.check(out)
        pages.write_report(run_report.report(self.path, self._reporter), out)
        return out

    def __repr__(self) -> str:
        metric = self.recipe.task.primary
        return f"TrainedRun({str(self.path)!r}: {self.recipe.strategy.title}, {metric} {self.metrics.get(metric):.4f})"


def compare(*runs: TrainedRun | str | Path, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Runs side by side, as `TrainedRun.compare` does. Raises UserError when they have nothing in common."""
    from pefttools.analysis.comparison import compare as compared

    if len(runs) < 2:
        raise UserError("compare: needs at least two runs")
    return compared([one.path if isinstance(one, TrainedRun) else Path(one) for one in runs], reporter)


def _raws(data: Any) -> Iterable[Any]:
    """Rows to predict, one at a time."""
    from pefttools.inference.unlabeled import TextRow

    if isinstance(data, str):
        if Path(data).suffix and len(data) < LONGEST_NAME and Path(data).is_file():
            raise UserError(
                f"predict: {data!r} is a file, but predict takes texts and tables; read it first (for example with"
                " pandas), or run `pefttools predict RUN FILE`. A list with this text predicts the text itself"
            )
        data = [data]
    if isinstance(data, Mapping) and not any(isinstance(one, (list, tuple)) for one in data.values()):
        data = [data]
    lists = [method for name in ("tolist", "to_list", "to_pylist") if (method := getattr(data, name, None)) is not None]
    if isinstance(data, Sequence) or (lists and not hasattr(data, "columns")):
        values: list[Any] = list(lists[0]() if lists else data)
        missing = [one is None or one != one for one in values]  # a table's empty cells
        if all(isinstance(one, str) or empty for one, empty in zip(values, missing, strict=True)):
            return [TextRow(text="" if empty else one) for one, empty in zip(values, missing, strict=True)]
        data = values
    if not (hasattr(data, "__len__") or hasattr(data, "columns")):  # a path, a number
        raise UserError(
            f"predict: takes a text, texts, dictionaries, a DataFrame or another table, not {type(data).__name__};"
            " `pefttools predict RUN FILE` reads files"
        )
    return rows.as_rows(data)
