"""``reelign stream MODEL``: a page where video appears while it is made, under a prompt that may change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from socket import socket

    from reelign.generators.causal_wan import CausalWanGenerator
    from reelign.stream.studio import StreamSettings
    from reelign.web.access import Access

console = Console()


def stream(
    model: Annotated[str, typer.Argument(help="zoo:tiny-causal-wan, a folder, or a hub id.")] = "zoo:tiny-causal-wan",
    transformer: Annotated[
        str | None, typer.Option(help="Weights to put into the model: a folder, a file, or a released checkpoint.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="A folder with an adapter that a run saved.")] = None,
    frames_per_block: Annotated[
        int | None, typer.Option(help="Latent frames made together; default: the model's own.", min=1)
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Latent frames a block sees; default: the model's own length.", min=1)
    ] = None,
    sink: Annotated[int, typer.Option(help="Of these, how many are the first of the stream.", min=0)] = 0,
    rebase_sink: Annotated[bool, typer.Option(help="Keep the sink right before the window.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps a block; default: the model's own.", min=1, max=1000)
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Default: the model's own; 1 is none.", min=0, max=100)
    ] = None,
    shift: Annotated[
        float | None, typer.Option(help="Of noise levels; default: the pipeline's. Released checkpoints: 5.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Of pictures; default: the model's own.", min=16)] = None,
    width: Annotated[int | None, typer.Option(help="Of pictures; default: the model's own.", min=16)] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.", min=0)] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    max_seconds: Annotated[float, typer.Option(help="A stream ends after so much video.", min=1)] = 600.0,
    host: Annotated[
        str, typer.Option(help="Address to serve on; beyond this machine a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8801,
    token: Annotated[
        str | None, typer.Option(envvar="REELIGN_STREAM_TOKEN", help="Secret to sign in with; default: a fresh one.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A host name to answer to, besides addresses.")] = None,
) -> None:
    """Serve the stream page: type a prompt, watch frames as they are made, change the prompt, stop, save."""
    from reelign.stream.loading import load_streamer
    from reelign.stream.session import StreamOptions
    from reelign.stream.studio import StreamSettings
    from reelign.web.access import Access, allowed_hosts, wanted_token
    from reelign.web.serving import listen

    access = Access(wanted_token(host, token), allowed_hosts(allow_host or []), "reelign_stream_session")
    listener = listen(host, port)
    generator = load_streamer(
        model, adapter, window, sink, transformer=transformer, frames_per_block=frames_per_block,
        rebase_sink=rebase_sink, shift=shift, height=height, width=width, dtype=dtype,
    )  # fmt: skip
    options = StreamOptions(steps=steps, guidance_scale=guidance_scale, seed=seed)
    name = f"{model} + {transformer or adapter}" if transformer or adapter else model
    _serve(generator, StreamSettings(name, options, max_seconds), access, listener)


def _serve(generator: CausalWanGenerator, settings: StreamSettings, access: Access, listener: socket) -> None:
    """Say where the page is, and serve it until Ctrl-C."""
    import tempfile

    from reelign.stream.clips import ClipShelf
    from reelign.stream.server import build_app
    from reelign.stream.studio import Studio
    from reelign.web.serving import address_of, serve

    with tempfile.TemporaryDirectory(prefix="reelign-stream-") as folder:
        studio = Studio(generator, settings, ClipShelf(Path(folder)))
        app = build_app(studio, access)
        layout = generator.layout
        console.print(
            f"{escape(settings.name)}: {layout.frames_per_block} latent frames a block, window of {layout.window}, "
            f"sink of {layout.sink}", soft_wrap=True, highlight=False,
        )  # fmt: skip
        console.print(f"stream: {address_of(listener, access.token)}", soft_wrap=True, highlight=False)
        if access.token is not None:
            console.print("anybody with this address may use it; put TLS in front of it outside a trusted network")
        serve(app, listener, studio.close)
