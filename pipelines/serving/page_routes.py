"""The page at `/`: static files that hold no data, under a policy that lets a browser ask no other host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

_FOLDER = Path(__file__).parent / "page"

PAGE_FILES = {"/": "index.html"} | {
    f"/page/{path.name}": path.name for path in sorted(_FOLDER.glob("*.*")) if path.stem != "index"
}
"""The files of the page, by route. They need no token."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> APIRouter:
    """A route for each of `PAGE_FILES`."""
    router = APIRouter()
    for route, name in PAGE_FILES.items():
        router.add_api_route(route, _sender(_FOLDER / name), methods=["GET"], include_in_schema=False)
    return router


def _sender(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(path, headers=_HEADERS)

    return send
