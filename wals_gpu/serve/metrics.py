"""What Prometheus is told."""

from __future__ import annotations

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one application, in a registry of their own.

    Of several processes (``PROMETHEUS_MULTIPROC_DIR`` says where they meet) each tells the numbers of all.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._together = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._requests = Counter(
            "wals_requests_total", "Requests that were answered.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "wals_request_seconds",
            "From the arrival of a request to its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "wals_batch_requests", "Requests that one search answered.", buckets=_REQUESTS, registry=registry
        )
        self.in_flight = Gauge(
            "wals_requests_in_flight", "Requests that wait.", registry=registry, multiprocess_mode="livesum"
        )
        self.model = Gauge(
            "wals_model_loaded_timestamp_seconds",
            "When the model in use was loaded.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.loaded = Gauge(
            "wals_models_loaded", "Models taken into use since the start.", registry=registry, multiprocess_mode="max"
        )
        self.refused = Gauge(
            "wals_models_refused", "New models that could not be used.", registry=registry, multiprocess_mode="max"
        )
        self._of: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answer. `path` is one of those that the application has, not what somebody asked for."""
        of = self._of.get((path, status))
        if of is None:
            of = self._of[path, status] = (
                self._requests.labels(path, str(status)),
                self._seconds.labels(path),
            )
        of[0].inc()
        of[1].observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        if not self._together:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
