"""What the metrics over class ids share."""

import datasets
import evaluate


class ClassMetric(evaluate.Metric):
    """A metric of predicted against true class ids; the subclass's module docstring is its description."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions, references: class ids",
            features=datasets.Features({"predictions": ids, "references": ids}),
        )
