"""Whether and when a request is sent again: a decision on what came back, without a clock."""

from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx

from kinfolk.client.errors import turned_away

Got = httpx.Response | httpx.RequestError  # what became of one try

_NEVER_ARRIVED = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Retries:
    """How stubborn a client is. Sampling has no side effects and every request a seed, so a repeat is safe."""

    times: int = 4  # further tries after the first
    first_s: float = 0.25  # most that is waited before the second try; doubled for each that follows
    longest_s: float = 60.0  # most that is waited; a server that asks for more is not asked again

    def wait_s(self, tried: int, got: Got, share: float, now: datetime) -> float | None:
        """Seconds to wait before the next try, None where what was got is final.

        ``tried`` tries were made again before; ``share`` in [0, 1) is the jitter, which spreads clients that were
        turned away at once; what the server asks for is waited in full. Source of the jitter:
        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
        """
        asked = retry_after_s(got, now) if isinstance(got, httpx.Response) else None
        if tried >= self.times or not _repeatable(got, asked) or (asked or 0.0) > self.longest_s:
            return None
        return (asked or 0.0) + share * min(self.first_s * 2**tried, self.longest_s)


def _repeatable(got: Got, asked_s: float | None) -> bool:
    if isinstance(got, httpx.Response):
        return turned_away(got.status_code, asked_s)
    return isinstance(got, _NEVER_ARRIVED)


def retry_after_s(response: httpx.Response, now: datetime) -> float | None:
    """What ``Retry-After`` asks for, in seconds or as a date. Source: RFC 9110, section 10.2.3."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - now).total_seconds(), 0.0)
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None
