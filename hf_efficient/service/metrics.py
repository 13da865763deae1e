"""What a service counts, in the format of Prometheus."""

from collections.abc import Callable
from typing import Any

from hf_efficient.errors import MissingDependencyError

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Requests by status, their seconds, sizes of batches, and how many wait.

    Args:
        waiting: tells how many requests wait.

    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(self, waiting: Callable[[], int]):
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingDependencyError("serving", "prometheus-client", "apps") from error
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "hf_efficient", "registry": self._registry}
        self._requests = Counter("requests", "Requests by HTTP status", ["status"], **common)
        self._seconds = Histogram("request_seconds", "Seconds from request to answer", buckets=SECONDS, **common)
        self._sizes = Histogram("batch_size", "Requests answered at once", buckets=SIZES, **common)
        Gauge("waiting", "Requests that wait", **common).set_function(waiting)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._sizes.observe(size)

    def text(self) -> str:
        """All of it, for a scraper."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()
