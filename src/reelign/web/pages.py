"""Pages of an application: templates and files of its room on top of those that all share, signing in, and errors."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from reelign.errors import DataError, ReelignError
from reelign.web.access import Access
from reelign.web.gate import session_of

WRONG_TOKEN_S = 0.5  # a guess costs this long
Render = Callable[..., str]  # (template, request, **facts) -> page


def templates(package: str) -> Environment:
    """Templates of a room; what it has none of, and the shell of a page, are shared. Everything is escaped."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("reelign.web")])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    made.trim_blocks = made.lstrip_blocks = True
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}  # lists are shown in the order given
    return made


def static_files(package: str) -> StaticFiles:
    """Scripts, styles and pictures of a room, and the shared ones."""
    return StaticFiles(packages=[(package, "static"), ("reelign.web", "static")])


def sign_in_routes(access: Access, render: Render) -> APIRouter:
    """The page that asks for the token, and what it posts to."""
    router = APIRouter(default_response_class=HTMLResponse)

    @router.get("/sign-in")
    def sign_in_page(request: Request) -> str:
        return render("sign_in", request, next=local(request.query_params.get("next", "/")), wrong=False)

    @router.post("/sign-in")
    async def sign_in(request: Request) -> Response:
        form = await posted_form(request)
        goal = local(form.get("next", "/"))
        if access.token is None:
            return RedirectResponse(goal, 303)
        if not hmac.compare_digest(form.get("token", "").strip().encode(), access.token.encode()):
            await asyncio.sleep(WRONG_TOKEN_S)
            return HTMLResponse(render("sign_in", request, next=goal, wrong=True), 401)
        reply = RedirectResponse(goal, 303)
        session = session_of(access.token)
        reply.set_cookie(access.cookie, session, samesite="strict", httponly=True, secure=is_secure(request))
        return reply

    return router


def handle_errors(
    app: FastAPI, render: Render, calls: tuple[str, ...], codes: Mapping[type[ReelignError], int] | None = None
) -> None:
    """Known errors, and addresses that lead nowhere, as one line: JSON for calls, a page for people.

    Args:
        calls: beginnings of addresses that scripts call.
        codes: status of errors that are not 422.
    """

    async def known(request: Request, error: Exception) -> Response:
        code = next((code for kind, code in (codes or {}).items() if isinstance(error, kind)), 422)
        if request.url.path.startswith(calls):
            return JSONResponse({"detail": str(error)}, code)
        return HTMLResponse(render("message", request, title="That did not work", text=str(error)), code)

    async def missing(request: Request, _error: Exception) -> Response:
        if request.url.path.startswith((*calls, "/static/")):
            return JSONResponse({"detail": "not found"}, 404)
        return HTMLResponse(render("message", request, title="Not found", text="There is no such page."), 404)

    app.add_exception_handler(ReelignError, known)
    app.add_exception_handler(404, missing)


async def posted_form(request: Request) -> dict[str, str]:
    """A posted form; each name once."""
    try:
        fields = parse_qs((await request.body()).decode(), max_num_fields=20)
    except ValueError as error:
        raise DataError("a form has a few fields of text; got something else") from error
    return {name: values[-1] for name, values in fields.items()}


def local(address: str) -> str:
    """An address on this server, or the start page: never another site."""
    return address if address.startswith("/") and not address.startswith(("//", "/\\")) else "/"


def is_secure(request: Request) -> bool:
    """Whether the page came over TLS."""
    return request.url.scheme == "https"
