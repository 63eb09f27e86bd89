"""What Prometheus is told."""

from __future__ import annotations

from typing import Any

# Seconds; the tiny engine's stages take milliseconds, Stable Diffusion's network seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one service, in a registry of its own.

    Attributes:
        inside: gauge, frames that are waiting or in work.
        gone: counter, requests whose client went away before the answer.
        kept: gauge, pictures whose attention is kept.
        clips: gauge, clips that are open.
    """

    def __init__(self, queue: int) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("diffseg_requests", "Answers, by route and status.", ["route", "status"], **more)
        self._errors = Counter("diffseg_errors", "Answers of status 400 and above, by route.", ["route"], **more)
        self._seconds = Histogram(
            "diffseg_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            buckets=BUCKETS,
            **more,
        )
        self._stages = Histogram(
            "diffseg_stage_seconds", "Time of a frame in each stage.", ["stage"], buckets=BUCKETS, **more
        )
        self.inside = Gauge("diffseg_queue_frames", "Frames that are waiting or in work.", **more)
        Gauge("diffseg_queue_limit", "Frames that may be inside at once.", **more).set(queue)
        self.gone = Counter("diffseg_clients_gone", "Requests whose client went away before the answer.", **more)
        self.kept = Gauge("diffseg_pictures_kept", "Pictures whose attention is kept.", **more)
        self.clips = Gauge("diffseg_clips_open", "Clips that are open.", **more)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, status).inc()
        if status >= 400:
            self._errors.labels(route).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """Count a frame's time in a stage."""
        self._stages.labels(name).observe(seconds)

    def text(self) -> tuple[bytes, str]:
        """What Prometheus reads, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
