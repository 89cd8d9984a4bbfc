"""The web application: one object that holds what every page needs, and the factory that puts the pages behind a gate.

Run: ``reelign review TAKES``, or ``uvicorn.run(build_app(TakesFolder(path), store, ReviewSettings()))``.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from reelign import __version__
from reelign.errors import DataError
from reelign.review import api, pages
from reelign.review.database import AlreadyAnsweredError, LabelStore, UnknownQuestionError
from reelign.review.desk import Desk
from reelign.review.library import Library
from reelign.review.media import MediaShelf
from reelign.review.settings import ReviewSettings
from reelign.selection.takes import TakesFolder
from reelign.web.access import Access
from reelign.web.gate import Gate
from reelign.web.pages import handle_errors, sign_in_routes, static_files, templates

log = logging.getLogger("reelign")
CALLS = ("/api/", "/media/", "/poster/")
CACHE = ".review"  # beside the takes; holds converted clips and stills only


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
    made = templates("reelign.review")
    desk = Desk(library, store, settings or ReviewSettings(), MediaShelf(_cache(folder.path)), made, access.token)
    app = FastAPI(title="reelign review", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.desk = desk
    app.include_router(api.router)
    app.include_router(pages.router)
    app.include_router(sign_in_routes(access, desk.render))
    app.mount("/static", static_files("reelign.review"))
    handle_errors(app, desk.render, CALLS, {UnknownQuestionError: 404, AlreadyAnsweredError: 409})
    return Gate(app, access)


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
