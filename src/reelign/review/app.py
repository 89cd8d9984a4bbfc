"""The web application: one object that holds what every page needs, and the factory that puts the pages behind a gate.

Run: ``reelign review TAKES``, or ``uvicorn.run(build_app(TakesFolder(path), store, ReviewSettings()))``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from reelign import __version__
from reelign.errors import DataError, ReelignError
from reelign.review import api, pages
from reelign.review.database import AlreadyAnsweredError, LabelStore, UnknownQuestionError
from reelign.review.desk import Desk
from reelign.review.library import Library
from reelign.review.media import MediaShelf
from reelign.review.security import Gate
from reelign.review.settings import ReviewSettings
from reelign.selection.takes import TakesFolder

log = logging.getLogger("reelign")
CACHE = ".review"  # beside the takes; holds converted clips and stills only


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Args:
        token: secret to sign in with; None asks for none.
        hosts: host names that are ours, besides localhost and addresses in digits.
    """

    token: str | None = None
    hosts: tuple[str, ...] = ()


def build_app(
    folder: TakesFolder, store: LabelStore, settings: ReviewSettings | None = None, access: Access | None = None
) -> ASGIApp:
    """The whole application, gate included.

    Args:
        folder: takes to review.
        store: where labels go; the application does not close it.
        settings: what to ask.
        access: who may come in; by default everybody who reaches the server, which is for loopback only.

    Raises:
        DataError: the takes cannot be read, or there are none.
    """
    access = access or Access()
    if folder.takes().empty:
        raise DataError(f"a review needs takes; {folder.path} has none: import clips into it first")
    library = Library(folder)
    desk = Desk(
        library, store, settings or ReviewSettings(), MediaShelf(_cache(folder.path)), _templates(), access.token
    )
    app = FastAPI(title="reelign review", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    app.include_router(api.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(packages=[("reelign.review", "static")]))
    _handle_errors(app, desk)
    return Gate(app, access.hosts, access.token)


def _handle_errors(app: FastAPI, desk: Desk) -> None:
    def status(error: Exception) -> int:
        return (
            404 if isinstance(error, UnknownQuestionError) else 409 if isinstance(error, AlreadyAnsweredError) else 422
        )

    async def known(request: Request, error: Exception) -> Response:
        code = status(error)
        if request.url.path.startswith(("/api/", "/media/", "/poster/")):
            return JSONResponse({"detail": str(error)}, code)
        return HTMLResponse(desk.render("message", request, title="That did not work", text=str(error)), code)

    async def missing(request: Request, _error: Exception) -> Response:
        if request.url.path.startswith(("/api/", "/media/", "/poster/", "/static/")):
            return JSONResponse({"detail": "not found"}, 404)
        return HTMLResponse(desk.render("message", request, title="Not found", text="There is no such page."), 404)

    app.add_exception_handler(ReelignError, known)
    app.add_exception_handler(404, missing)


def _cache(folder: Path) -> Path:
    """A folder for converted clips: inside the takes folder, or a temporary one where that cannot be written."""
    place = folder / CACHE
    try:
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError as error:
        log.info("clips are converted to a temporary folder, because %s cannot be written (%s)", place, error.strerror)
        return Path(tempfile.mkdtemp(prefix="reelign-review-"))


def _templates() -> Environment:
    made = Environment(loader=PackageLoader("reelign.review"), autoescape=True, undefined=StrictUndefined)
    made.trim_blocks = made.lstrip_blocks = True
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}  # axes are asked in the order given
    return made


def allowed_hosts(names: Iterable[str]) -> tuple[str, ...]:
    """Host names to answer to, as the gate wants them: lower case, without port."""
    return tuple(name.lower().rsplit(":", 1)[0] for name in names)
