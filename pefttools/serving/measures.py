"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PATHS = ("/predict", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics")


class Measures:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("pefttools_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "pefttools_request_seconds", "Seconds of a request.", ("path",), buckets=SECONDS, registry=registry
        )
        self.rows = Counter("pefttools_rows", "Computed rows.", registry=registry)
        self.pass_rows = Histogram(
            "pefttools_pass_rows", "Rows that are computed together.", buckets=ROWS, registry=registry
        )
        self.pass_seconds = Counter("pefttools_pass_seconds", "Seconds of computing.", registry=registry)

    def waiting(self, number: Callable[[], float]) -> None:
        """Report the number of rows that wait."""
        Gauge("pefttools_waiting_rows", "Rows that wait.", registry=self.registry).set_function(number)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        known = path if path in PATHS else "other"
        self.requests.labels(known, str(status)).inc()
        self.seconds.labels(known).observe(seconds)

    def computed(self, rows: int, seconds: float) -> None:
        """Count a pass of the model."""
        self.rows.inc(rows)
        self.pass_rows.observe(rows)
        self.pass_seconds.inc(seconds)

    def text(self) -> bytes:
        """All values in Prometheus' format."""
        return generate_latest(self.registry)
