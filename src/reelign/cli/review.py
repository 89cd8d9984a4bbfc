"""``reelign review TAKES``: serve the page where people watch, compare and label takes; or export their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from reelign.errors import ConfigError

if TYPE_CHECKING:
    import socket

    from reelign.review.database import LabelStore
    from reelign.review.settings import ReviewSettings
    from reelign.selection.takes import TakesFolder
    from reelign.web.access import Access

console = Console()


def review(
    takes: Annotated[Path, typer.Argument(help="A takes folder.")],
    host: Annotated[
        str, typer.Option(help="Address to serve on; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8800,
    token: Annotated[
        str | None, typer.Option(envvar="REELIGN_REVIEW_TOKEN", help="Secret to sign in with; default: a fresh one.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A host name to answer to, besides addresses.")] = None,
    database: Annotated[
        str | None, typer.Option(help="SQLite file or postgresql:// URL; default: labels.sqlite beside the takes.")
    ] = None,
    axes: Annotated[
        str, typer.Option(help="Asked about each pair or take: overall,visual_quality,motion, …")
    ] = "overall",
    scale: Annotated[str, typer.Option(help="Single takes are rated from 1 to 'five', or 'pass' or fail.")] = "five",
    pairing: Annotated[str, typer.Option(help="'informative' or 'balanced'.")] = "informative",
    goal: Annotated[int, typer.Option(help="Comparisons of each take by each person; 0 is every pair.")] = 6,
    overlap: Annotated[float, typer.Option(help="Share of pairs that others answered too, to see agreement.")] = 0.2,
    repeats: Annotated[float, typer.Option(help="Share of hidden repeats, sides swapped.")] = 0.05,
    checks: Annotated[float, typer.Option(help="Share of attention checks against a spoiled copy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of order and sides.")] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Write .csv, .parquet or .jsonl and stop, instead of serving.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Exported: 'labels', 'ratings' or 'preferences'.")] = "labels",
) -> None:
    """Serve the review page: people watch takes side by side and choose; labels go to a database, append-only."""
    from reelign.review.database import LabelStore
    from reelign.review.library import Library
    from reelign.selection.takes import TakesFolder
    from reelign.web.access import Access, allowed_hosts, wanted_token
    from reelign.web.serving import listen

    folder = TakesFolder(takes)
    store = LabelStore.open(database or takes / "labels.sqlite")
    if export is not None:
        from reelign.review.export import export_file

        rows = export_file(export, kind, store.answers(), Library(folder).shelf())
        console.print(f"{rows} {escape(kind)}: {escape(str(export))}", soft_wrap=True, highlight=False)
        return
    settings = _settings(
        axes=tuple(axis.strip() for axis in axes.split(",")), scale=scale, pairing=pairing, goal=goal, overlap=overlap,
        repeats=repeats, checks=checks, seed=seed,
    )  # fmt: skip
    access = Access(wanted_token(host, token), allowed_hosts(allow_host or []))
    _serve(folder, store, settings, access, listen(host, port))


def _settings(**values: object) -> ReviewSettings:
    from pydantic import ValidationError

    from reelign.review.settings import ReviewSettings

    try:
        return ReviewSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{'.'.join(map(str, first['loc']))}: {first['msg']}; got {first['input']!r}") from error


def _serve(
    folder: TakesFolder, store: LabelStore, settings: ReviewSettings, access: Access, listener: socket.socket
) -> None:
    from reelign.review.app import build_app
    from reelign.web.serving import address_of, serve

    app = build_app(folder, store, settings, access)
    console.print(f"review: {address_of(listener, access.token)}", soft_wrap=True, highlight=False)
    if access.token is not None:
        console.print("anybody with this address may label; put TLS in front of it outside a trusted network")
    serve(app, listener, store.close)
