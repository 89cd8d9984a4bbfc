"""``reelign``: every verb, registered here, each in its own file. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import typer
from rich.console import Console

from reelign import __version__
from reelign.cli import (
    camera,
    data,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    judge,
    metrics,
    plan,
    reject,
    report,
    review,
    rewards,
    score,
    select,
    selfplay,
    stream,
    takes,
    train,
    translate,
    zoo,
)
from reelign.errors import ConfigError, ReelignError

app = typer.Typer(
    help="Post-train video generators from feedback, and prove that they got better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(plan.plan)
app.command()(generate.generate)
app.command()(export.export)
app.command()(translate.translate)
app.add_typer(takes.app, name="takes")
app.command()(score.score)
app.command()(metrics.metrics)
app.command()(evaluate.evaluate)
app.command()(camera.camera)
app.command()(reject.reject)
app.command()(review.review)
app.command()(stream.stream)
app.add_typer(judge.app, name="judge")
app.command()(select.select)
app.command()(selfplay.selfplay)
app.command()(report.report)
app.add_typer(data.app, name="data")
app.add_typer(zoo.app, name="zoo")
app.add_typer(rewards.app, name="rewards")
app.command()(doctor.doctor)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"reelign {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what the libraries log."),
) -> None:
    """Post-train video generators from feedback, and prove that they got better."""
    _require_train_under_a_launcher(context.invoked_subcommand)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    logging.getLogger("reelign").setLevel(logging.INFO)
    if not verbose:
        quiet_libraries()


def _require_train_under_a_launcher(verb: str | None) -> None:
    """Refuse what every process would do for itself, into the same files."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if "LOCAL_RANK" in os.environ and processes > 1 and verb not in (None, "train"):
        raise ConfigError(f"of reelign's verbs only train runs in several processes; got {verb} in {processes}")


def quiet_libraries() -> None:
    """Keep the libraries' loading bars and deprecation notices off the screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")


def main() -> None:
    """Run the command line; an error of the user's is one line and exit code 2."""
    if os.getcwd() not in sys.path:  # so that module:object finds the user's own files; last, so that they hide nothing
        sys.path.append(os.getcwd())
    try:
        app()
    except ReelignError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {_plain(error)}")
        sys.exit(2)


def _plain(error: ReelignError) -> str:
    return str(error).replace("[", "\\[")


if __name__ == "__main__":
    main()
