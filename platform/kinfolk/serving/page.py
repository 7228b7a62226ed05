"""The playground: a page at ``/`` with files of its own. It holds no secret and needs nothing from elsewhere."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kinfolk.serving.endpoint import is_known

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for by its ETag each time: a new release is seen at once
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page as it is answered."""

    content: bytes
    kind: str  # media type
    etag: str


def page_files() -> dict[str, PageFile]:
    """The files by the paths at which they are served; no other path leads to a file."""
    folder = resources.files("kinfolk.serving") / "playground"
    found = {file.name: file for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
    return {"/" if name == "index.html" else f"/playground/{name}": _read(found[name]) for name in sorted(found)}


def _read(file: resources.abc.Traversable) -> PageFile:
    content = file.read_bytes()
    return PageFile(content, _TYPES[file.name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def page_routes(files: Mapping[str, PageFile]) -> list[Route]:
    """A route for each file."""
    return [_route(path, file) for path, file in files.items()]


def _route(path: str, file: PageFile) -> Route:
    async def answer(request: Request) -> Response:
        headers = {**_HEADERS, "ETag": file.etag}
        if is_known(file.etag, request):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.kind, headers=headers)

    return Route(path, answer, methods=["GET"])
