"""The calls of the pages' scripts: next questions, answers, undo; and clips by the hash of their bytes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import DataError
from reelign.review.desk import desk_of, named_annotator
from reelign.review.library import file_of
from reelign.review.queue import next_questions, progress

router = APIRouter()
UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
HASH = re.compile(r"[0-9a-f]{64}")
AT_ONCE = 32  # questions given out in one call
FOREVER = {"cache-control": "private, max-age=86400"}  # a hash names one clip for ever

Task = Literal["pair", "rate"]
Take = Annotated[str, Path(max_length=64)]


class Wanted(BaseModel):
    """A call for questions.

    Args:
        task: pairs, or single takes.
        n: how many.
    """

    model_config = ConfigDict(extra="forbid")

    task: Task
    n: int = Field(3, ge=1, le=AT_ONCE)


class Submission(BaseModel):
    """An answer.

    Args:
        submission: its identity, made by the browser.
        question: which question.
        task: of the question.
        choices: one for each axis.
        seconds: how long the question was in sight.
    """

    model_config = ConfigDict(extra="forbid")

    submission: str = Field(pattern=UUID)
    question: str = Field(pattern=UUID)
    task: Task
    choices: dict[str, str]
    seconds: float | None = Field(None, ge=0, le=1e6, allow_inf_nan=False)


class Retraction(BaseModel):
    """An undo.

    Args:
        submission: its own identity.
        retracts: that of the answer.
        task: of its question, for the progress that comes back.
    """

    model_config = ConfigDict(extra="forbid")

    submission: str = Field(pattern=UUID)
    retracts: str = Field(pattern=UUID)
    task: Task


@router.post("/api/questions")
def questions(request: Request, wanted: Wanted) -> dict[str, Any]:
    """The next questions of this annotator, and how far they are."""
    desk, who = desk_of(request), named_annotator(request)
    shelf = desk.library.shelf()
    found = next_questions(desk.store, shelf, desk.settings, who, wanted.task, wanted.n)
    return {"questions": [desk.question(shelf, q) for q in found], "progress": _progress(request, wanted.task)}


@router.post("/api/answers")
def answers(request: Request, given: Submission) -> dict[str, Any]:
    """Store an answer; the reply is its acknowledgement and comes after the commit."""
    desk, who = desk_of(request), named_annotator(request)
    allowed = desk.settings.choices(given.task)
    if set(given.choices) != set(desk.settings.axes) or not set(given.choices.values()) <= set(allowed):
        raise DataError(
            f"an answer gives one of {', '.join(allowed)} for each of {', '.join(desk.settings.axes)}; "
            f"got {str(given.choices)[:200]}"
        )
    desk.store.answer(given.submission, given.question, who, given.choices, given.seconds, given.task)
    return {"stored": given.submission, "progress": _progress(request, given.task)}


@router.post("/api/retractions")
def retractions(request: Request, given: Retraction) -> dict[str, Any]:
    """Undo an answer; the reply comes after the commit."""
    desk_of(request).store.retract(given.submission, given.retracts, named_annotator(request))
    return {"stored": given.submission, "progress": _progress(request, given.task)}


@router.get("/health")
def health() -> dict[str, bool]:
    """Whether the server answers."""
    return {"ok": True}


@router.get("/media/{take}")
def media(request: Request, take: Take) -> FileResponse:
    """A clip by its hash, by range; from no other path of the disk than what the takes table names."""
    desk = desk_of(request)
    shelf = desk.library.shelf()
    if not HASH.fullmatch(take) or not shelf.holds(take):
        raise HTTPException(404)
    if take in shelf.rows:
        path, kind = desk.media.playable(take, file_of(desk.library.folder, shelf, take))
        return FileResponse(path, media_type=kind, headers=FOREVER)
    first = shelf.spoiled[take]
    path = desk.media.spoiled(take, first, file_of(desk.library.folder, shelf, first))
    return FileResponse(path, media_type="video/mp4", headers=FOREVER)


@router.get("/poster/{take}")
def poster(request: Request, take: Take) -> FileResponse:
    """A still of a take."""
    desk = desk_of(request)
    shelf = desk.library.shelf()
    if not HASH.fullmatch(take) or take not in shelf.rows:
        raise HTTPException(404)
    path = desk.media.poster(take, file_of(desk.library.folder, shelf, take))
    return FileResponse(path, media_type="image/jpeg", headers=FOREVER)


def _progress(request: Request, task: str) -> dict[str, int]:
    desk = desk_of(request)
    found = progress(desk.store, desk.library.shelf(), desk.settings, named_annotator(request), task)
    return {"answered": found.answered, "goal": found.goal}
