"""The pages, rendered here and escaped by the templates; they work without scripts wherever no clip must be steered."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.responses import Response

from reelign.review.browse import PLAIN, browse, read_filters
from reelign.review.desk import NAME_COOKIE, annotator_of, clean_name, desk_of, name_cookie
from reelign.review.export import TYPES, as_bytes, export_table
from reelign.review.queue import progress
from reelign.review.results import agreement, canonical, people, win_rates
from reelign.web.pages import is_secure, local, posted_form

router = APIRouter(default_response_class=HTMLResponse)
YEAR_S = 365 * 24 * 3600
LISTED_GROUPS = 500


@router.get("/")
def overview(request: Request) -> str:
    """Where one starts: name, tasks, progress, exports."""
    desk, who = desk_of(request), annotator_of(request)
    shelf = desk.library.shelf()
    tasks = {task: progress(desk.store, shelf, desk.settings, who, task) for task in ("pair", "rate")}
    facts = {"takes": len(shelf.rows), "groups": len(shelf.groups), "compared": len(shelf.compared)}
    return desk.render("overview", request, tasks=tasks, next="/", **facts, **_totals(request))


@router.post("/name")
async def name(request: Request) -> Response:
    """Say who is labelling."""
    form = await posted_form(request)
    reply = RedirectResponse(local(form.get("next", "/")), 303)
    said = name_cookie(clean_name(form.get("name", "")))
    reply.set_cookie(NAME_COOKIE, said, max_age=YEAR_S, samesite="strict", httponly=True, secure=is_secure(request))
    return reply


@router.get("/compare")
def compare(request: Request) -> Response:
    """Two takes side by side."""
    return _task_page(request, "pair", "compare")


@router.get("/rate")
def rate(request: Request) -> Response:
    """One take at a time."""
    return _task_page(request, "rate", "rate")


@router.get("/browse")
def browse_page(request: Request) -> str:
    """All takes, filtered, sorted, by pages."""
    desk = desk_of(request)
    shelf = desk.library.shelf()
    filters = read_filters(request.query_params)
    groups = list(shelf.groups)[:LISTED_GROUPS]
    return desk.render(
        "browse", request, filters=filters, found=browse(shelf, filters), metrics=shelf.metrics, plain=PLAIN,
        groups=groups,
    )  # fmt: skip


@router.get("/take/{take}")
def take_page(request: Request, take: str) -> str:
    """One take with all that is known of it."""
    desk = desk_of(request)
    shelf = desk.library.shelf()
    if take not in shelf.rows:
        raise HTTPException(404)
    row = shelf.wide.iloc[shelf.rows[take]].to_dict()
    scores = shelf.scores[shelf.scores["take"] == take].sort_values(["metric", "version"]).to_dict("records")
    siblings = shelf.groups[row["group"]]
    place = siblings.index(take)
    around = {"before": siblings[place - 1 : place], "after": siblings[place + 1 : place + 2]}
    return desk.render(
        "take", request, take=take, row=row, scores=scores, facts=desk.facts(shelf, take), count=len(siblings),
        place=place + 1, tally=_tally(request, take), **around,
    )  # fmt: skip


@router.get("/agreement")
def agreement_page(request: Request) -> str:
    """Who agrees with whom, and what the answers say."""
    desk = desk_of(request)
    answers, shelf = desk.store.answers(), desk.library.shelf()
    workers = people(answers)
    done = {p.name: progress(desk.store, shelf, desk.settings, p.name, "pair") for p in workers}
    return desk.render(
        "agreement", request, people=workers, done=done, axes=agreement(answers), wins=win_rates(answers, shelf),
        **_totals(request),
    )  # fmt: skip


@router.get("/export/{kind}.{suffix}")
def export(request: Request, kind: str, suffix: str) -> Response:
    """Labels, ratings or preferences as a file."""
    desk = desk_of(request)
    data = as_bytes(export_table(kind, desk.store.answers(), desk.library.shelf()), f".{suffix}")
    named = {"content-disposition": f'attachment; filename="{kind}.{suffix}"'}
    return Response(data, media_type=TYPES[f".{suffix}"], headers=named)


def _task_page(request: Request, task: str, template: str) -> Response:
    desk = desk_of(request)
    if not annotator_of(request):
        return HTMLResponse(desk.render("name", request, next=request.url.path))
    wording = desk.settings.wording(task)
    return HTMLResponse(
        desk.render(template, request, axes=wording, choices=desk.settings.choices(task), review=desk.review)
    )


def _totals(request: Request) -> dict[str, Any]:
    """Standing labels in all, for the pages that offer exports."""
    answers = desk_of(request).store.answers()
    counts = answers.loc[answers["purpose"] == "label"].drop_duplicates("question")["task"].value_counts()
    return {"pairs": int(counts.get("pair", 0)), "ratings": int(counts.get("rate", 0))}


def _tally(request: Request, take: str) -> list[dict[str, Any]]:
    """What people said about a take, by axis: comparisons won, lost, tied, both bad, and ratings."""
    table = canonical(desk_of(request).store.answers())
    mine = table[(table["purpose"] == "label") & ((table["left"] == take) | (table["right"] == take))]
    rows = []
    for axis, part in mine.groupby("axis", sort=False):
        pairs, rated = part[part["task"] == "pair"], part[part["task"] == "rate"]
        sided = pairs[pairs["choice"].isin(["left", "right"])]
        won = int((sided["said"] == take).sum())
        both_bad, tied = (int((pairs["choice"] == choice).sum()) for choice in ("both_bad", "tie"))
        counts = {"won": won, "lost": len(sided) - won, "tied": tied, "both_bad": both_bad}
        rows.append({"axis": axis, **counts, "ratings": ", ".join(rated["choice"])})
    return rows
