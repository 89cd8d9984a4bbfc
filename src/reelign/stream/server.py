"""The web application: a page, a WebSocket for each page that is open, and clips to save.

Run: ``reelign stream MODEL``, or ``uvicorn.run(build_app(Studio(generator, settings, ClipShelf(folder))))``.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from reelign import __version__
from reelign.stream.studio import Studio
from reelign.stream.visit import Visit
from reelign.web.access import Access
from reelign.web.gate import Gate
from reelign.web.pages import handle_errors, sign_in_routes, static_files, templates

CALLS = ("/api/", "/clips/")
NAME = re.compile(r"[\w-]{16}-\d+\.mp4")
EXAMPLE = "a red circle moving left"  # of the prompts that the zoo's models know


class Wanted(BaseModel):
    """A stream that is to be saved.

    Args:
        stream: its secret name.
    """

    model_config = ConfigDict(extra="forbid")

    stream: str = Field(max_length=64)


def build_app(studio: Studio, access: Access | None = None) -> ASGIApp:
    """The whole application, gate included.

    Args:
        studio: what streams; the application does not close it.
        access: who may come in; by default everybody who reaches the server, which is for loopback only.
    """
    access = access or Access()
    made = templates("reelign.stream")

    def render(template: str, request: Request, **facts: Any) -> str:
        return made.get_template(f"{template}.html.j2").render(path=request.url.path, **facts)

    app = FastAPI(title="reelign stream", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_routes(studio))

    @app.get("/", response_class=HTMLResponse)
    def page(request: Request) -> str:
        name = studio.settings.name
        return render("stream", request, model=name, example=EXAMPLE if name.startswith("zoo:") else "")

    @app.websocket("/stream")
    async def visit(socket: WebSocket) -> None:
        await Visit(socket, studio).run()

    app.include_router(sign_in_routes(access, render))
    app.mount("/static", static_files("reelign.stream"))
    handle_errors(app, render, CALLS)
    return Gate(app, access)


def _routes(studio: Studio) -> APIRouter:
    """Calls of the page's script, and clips."""
    router = APIRouter()

    @router.get("/health")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @router.post("/api/clip")
    def facts(wanted: Wanted) -> dict[str, Any]:
        kept = studio.shelf.find(wanted.stream)
        prompts = [{"prompt": prompt, "frame": frame} for frame, prompt in kept.prompts]
        return {"frames": kept.clip.frames, "prompts": prompts, "ended": kept.ended}

    @router.post("/api/save")
    def save(wanted: Wanted) -> dict[str, Any]:
        name, frames = studio.shelf.save(wanted.stream)
        return {"url": f"/clips/{name}", "frames": frames, "seconds": round(frames / studio.generator.fps, 3)}

    @router.get("/clips/{name}")
    def clip(name: str) -> FileResponse:
        found = studio.shelf.file(name) if NAME.fullmatch(name) else None
        if found is None:
            raise HTTPException(404)
        return FileResponse(found, media_type="video/mp4", filename="reelign-stream.mp4")

    return router
