"""The application: routes, the page, and one form for all errors. Ids are opaque; no route takes a path or a model."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from evilm import __version__
from evilm.errors import EvilmError, VideoError
from evilm.server import index_routes, schemas, search_routes, video_routes
from evilm.server.batches import BusyError
from evilm.server.media import FullError
from evilm.server.security import Guard
from evilm.server.services import ServerConfig, Services
from evilm.server.videos import MissingError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["ServerConfig", "create_app"]

STATIC = Path(__file__).parent / "static"
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.ErrorOut} for code in (400, 404, 409, 413, 415, 422, 503)
}
_CODES = {404: "not_found", 405: "wrong_method", 409: "conflict", 413: "too_large", 503: "busy"}
_PATH = re.compile(r"(?<![\w.~])/(?:[^\s:;,'\"()]*/)?([^\s:;,'\"()/]*)")


def create_app(config: ServerConfig) -> FastAPI:
    """The application of a configuration; ``app.state.services`` is what it holds."""
    services = Services(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        await services.start()
        yield
        await services.stop()

    app = FastAPI(
        title="E-ViLM", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS
    )
    app.state.services = services
    app.add_middleware(Guard, access=config.access)  # pyright: ignore[reportArgumentType], an ASGI class
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for routes in (search_routes, video_routes, index_routes):
        app.include_router(routes.router)
    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    return app


def _answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def _http(_: Request, error: Any) -> Response:
    message = "There is nothing at this address." if error.detail == "Not Found" else str(error.detail)
    return _answer(error.status_code, _CODES.get(error.status_code, "error"), message, dict(error.headers or {}))


def _invalid(_: Request, error: Any) -> Response:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return _answer(422, "invalid", f"{place or 'The request'}: {first['msg']}.")


def _busy(_: Request, __: Exception) -> Response:
    return _answer(503, "busy", "The server has too much work; try again in a few seconds.", {"Retry-After": "2"})


def _missing(_: Request, error: Exception) -> Response:
    return _answer(404, "not_found", str(error))


def _unreadable(_: Request, error: Any) -> Response:
    status = 404 if error.status == "not_a_file" else 415
    return _answer(status, error.status, without_paths(f"{Path(error.path).name}: {error.reason}"))


def _refused(_: Request, error: Exception) -> Response:
    return _answer(400, "refused", without_paths(" ".join(str(error).split())))


def without_paths(message: str) -> str:
    """A message in which each absolute path is replaced by its last part."""
    return _PATH.sub(r"\1", message)


_HANDLERS: dict[type[Exception], Any] = {
    HTTPException: _http, RequestValidationError: _invalid, BusyError: _busy, FullError: _busy, TimeoutError: _busy,
    MissingError: _missing, VideoError: _unreadable, EvilmError: _refused,
}  # fmt: skip
