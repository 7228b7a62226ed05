"""Pages of other sites: which of them may read what a server answers, and make it work.

A browser asks before it sends most requests of a page to another site, and is told no. It sends those that a form could
make without asking: they are refused here. Source: https://fetch.spec.whatwg.org/#http-cors-protocol.
"""

from collections.abc import Collection, Mapping, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_SENT = ("Accept", "Authorization", "Content-Type", "If-None-Match", "Kinfolk-Timeout", "X-Request-ID")
_FACTS = ("Model", "Version", "Family", "Task", "Seed", "Unit", "Calls", "Evaluations", "Queued-Ms", "Computed-Ms")
_READ = ("ETag", "Retry-After", "WWW-Authenticate", "X-Request-ID", *(f"Kinfolk-{fact}" for fact in _FACTS))
_PREFLIGHT_AGE_S = 600  # for which a browser need not ask again whether it may
_FORMS = frozenset((b"", b"text/plain", b"multipart/form-data", b"application/x-www-form-urlencoded"))  # or no body


def stranger(headers: Mapping[bytes, bytes], origins: Collection[str]) -> str | None:
    """The site whose page makes a request as a form could, where it is neither this one nor one of ``origins``."""
    origin = headers.get(b"origin")
    if origin is None or headers.get(b"content-type", b"").partition(b";")[0].strip().lower() not in _FORMS:
        return None
    site = origin.partition(b"://")[2]
    own = bool(site) and site == headers.get(b"host", b"").lower()
    told = origin.decode("latin-1")
    return None if own or "*" in origins or told in origins else told


def open_to(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """``app``, whose answers pages of ``origins`` may read; the app itself where there are none.

    Browsers send no cookie or password along, as the server knows neither: a page must hold the token itself.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=_SENT,
        expose_headers=_READ,
        max_age=_PREFLIGHT_AGE_S,
    )
