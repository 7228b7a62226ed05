"""How many replicas the work that is there needs: a policy for Ray Serve, by network evaluations, not by requests."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinfolk.serving.batcher import Batcher

QUEUED, BUSY = "queued_s", "busy"  # what replicas report of themselves


def replicas_for(queued_s: float, busy: float, requests: float, target_queue_s: float, target_busy: float) -> int:
    """Replicas that get through the work queued in ``target_queue_s``, none of them busy for more than ``target_busy``.

    ``queued_s`` is the time that the network evaluations which are queued would take one replica at its measured
    speed; ``busy`` the share of the last seconds that it computed; both summed over replicas. With ``requests`` under
    way there is at least one, with none and nothing to do there is none.
    """
    wanted = max(queued_s / target_queue_s, busy / target_busy)
    return max(math.ceil(round(wanted, 6)), 1 if requests > 0 else 0)


def _latest(metrics: Mapping[str, Mapping[Any, Any]] | None, name: str) -> float:
    """The last value that each replica reported, summed."""
    series = (metrics or {}).get(name, {})
    return sum(points[-1].value for points in series.values() if points)


class ByWork:
    """The policy as Serve makes and calls it; Serve applies delays and bounds to what it returns."""

    def __init__(self, target_queue_s: float, target_busy: float) -> None:
        self._targets = target_queue_s, target_busy

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """How many replicas there should be, and nothing to remember."""
        queued_s, busy = (_latest(context.raw_metrics, name) for name in (QUEUED, BUSY))
        return replicas_for(queued_s, busy, context.total_num_requests, *self._targets), {}


class WorkMeter:
    """What one replica reports of itself, over all versions that answer requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at = clock()
        self._seen: dict[int, tuple[Batcher, float]] = {}  # seconds computed, by the identity of the batcher

    def since_last(self, batchers: "Sequence[Batcher]") -> dict[str, float]:
        """How long what is queued will take, and the share of the time that was computed since it was asked last."""
        now = self._clock()
        computed = sum(each.counts.seconds - self._seen.get(id(each), (each, 0.0))[1] for each in batchers)
        busy = computed / max(now - self._asked_at, 1e-3)
        self._asked_at = now
        self._seen = {id(each): (each, each.counts.seconds) for each in batchers}
        queued_s = sum(each.evaluations / each.evaluations_per_s for each in batchers if each.evaluations_per_s > 0)
        return {QUEUED: queued_s, BUSY: min(max(busy, 0.0), 1.0)}
