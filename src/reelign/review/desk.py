"""What every page and call needs, in one object; and who is asking."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from fastapi import HTTPException, Request
from jinja2 import Environment

from reelign.errors import DataError
from reelign.review.database import LabelStore, Question
from reelign.review.library import Library, Shelf, file_of
from reelign.review.media import ClipFacts, MediaShelf
from reelign.review.settings import ReviewSettings

NAME_COOKIE = "reelign_annotator"
NAME_LENGTH = 64


@dataclass(frozen=True)
class Desk:
    """What every page and call needs.

    Args:
        library: the takes.
        store: the labels.
        settings: what is asked.
        media: clips for the browser.
        templates: of the pages.
        token: secret to sign in with, or None.
    """

    library: Library
    store: LabelStore
    settings: ReviewSettings
    media: MediaShelf
    templates: Environment
    token: str | None

    @property
    def review(self) -> str:
        """Tells this review from another one that is served on the same address later."""
        place = f"{self.library.folder.path.resolve()} {self.store.engine.url!r}"
        return hashlib.sha256(place.encode()).hexdigest()[:16]

    def render(self, template: str, request: Request, **facts: Any) -> str:
        """A page."""
        who = annotator_of(request)
        common = {"annotator": who, "path": request.url.path, "token": self.token is not None}
        return self.templates.get_template(f"{template}.html.j2").render(**common, **facts)

    def clip(self, shelf: Shelf, name: str) -> dict[str, Any]:
        """What the page is told of a take or of a spoiled copy: never its prompt, file or scores."""
        take = shelf.spoiled.get(name, name)
        facts = self.facts(shelf, take)
        hidden = ClipFacts(facts.frames, facts.fps, facts.width, facts.height, problem=facts.problem)
        shown = hidden if name != take else facts
        return {
            "src": f"/media/{name}",
            "frames": shown.frames,
            "fps": shown.fps,
            "width": shown.width,
            "height": shown.height,
            "note": shown.note,
            "problem": shown.problem,
        }

    def facts(self, shelf: Shelf, take: str) -> ClipFacts:
        """Facts of the clip of a take."""
        return self.media.facts(take, file_of(self.library.folder, shelf, take))

    def question(self, shelf: Shelf, question: Question) -> dict[str, Any]:
        """A question as the page gets it; its purpose stays here."""
        first = shelf.spoiled.get(question.left, question.left)
        return {
            "id": question.id,
            "group": question.group,
            "prompt": shelf.fact(first, "prompt"),
            "left": self.clip(shelf, question.left),
            "right": self.clip(shelf, question.right) if question.right else None,
        }


def desk_of(request: Request) -> Desk:
    """The desk of the running application."""
    desk: Desk = request.app.state.desk
    return desk


def annotator_of(request: Request) -> str:
    """Who is asking, from their cookie; empty where they have not said."""
    try:
        return clean_name(unquote(request.cookies.get(NAME_COOKIE, "")))
    except DataError:
        return ""


def named_annotator(request: Request) -> str:
    """As ``annotator_of``, for calls that need one.

    Raises:
        HTTPException: 401 where they have not said.
    """
    if name := annotator_of(request):
        return name
    raise HTTPException(401, "say who you are first")


def clean_name(text: str) -> str:
    """A name as it is stored: composed letters, single spaces.

    Raises:
        DataError: empty, longer than 64 letters, or with characters that cannot be seen.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not name or len(name) > NAME_LENGTH or any(unicodedata.category(letter)[0] == "C" for letter in name):
        raise DataError(f"a name has 1 to {NAME_LENGTH} visible letters; got {text[:80]!r}")
    return name


def name_cookie(name: str) -> str:
    """A name as a cookie can hold it."""
    return quote(name)
