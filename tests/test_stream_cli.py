"""``reelign stream`` as users run it."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest
from typer.testing import CliRunner
from web_server import Server

from reelign.cli.main import app
from reelign.errors import ConfigError, ModelError, ReelignError, UnknownNameError

SMALL = ("zoo:tiny-causal-wan", "--steps", "2")


def test_it_serves_what_it_says():
    """In a process of its own: the page is there, and an ordinary end of the process is one."""
    server = Server("stream", (*SMALL, "--window", "4", "--sink", "1")).start()
    try:
        with urllib.request.urlopen(f"{server.url}/health", timeout=10) as reply:
            assert json.load(reply) == {"ok": True}
        with urllib.request.urlopen(server.url, timeout=10) as reply:
            assert "zoo:tiny-causal-wan" in reply.read().decode()
    finally:
        assert server.process is not None
        server.process.terminate()
        said = server.process.communicate(timeout=30)[0]
    assert f"stream: {server.url}" in said
    assert "1 latent frames a block, window of 4, sink of 1" in said
    assert "Traceback" not in said


def refused(*arguments: str) -> ReelignError:
    result = CliRunner().invoke(app, ["stream", *arguments, "--port", "0"])
    assert isinstance(result.exception, ReelignError), result.output
    assert "\n" not in str(result.exception)
    return result.exception


def test_bad_options_are_one_line():
    assert isinstance(refused(*SMALL, "--window", "2", "--sink", "2"), ConfigError)
    assert "float23" in str(refused(*SMALL, "--dtype", "float23"))
    assert isinstance(refused("zoo:tiny-wam"), UnknownNameError)
    assert isinstance(refused(*SMALL, "--adapter", "nowhere"), ModelError)
    assert isinstance(refused(*SMALL, "--transformer", "nowhere"), ModelError)
    assert "multiples of" in str(refused(*SMALL, "--height", "50"))
    assert "greater than 0" in str(refused(*SMALL, "--shift", "0"))
    assert "whole blocks" in str(refused("zoo:tiny-wan", "--frames-per-block", "3"))
    assert "at least 16 letters" in str(refused(*SMALL, "--token", "short"))


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["stream", *SMALL, "--port", str(taken.getsockname()[1])])
    assert isinstance(result.exception, ConfigError)
    assert "choose another --port" in str(result.exception)


@pytest.mark.parametrize("option", ["--steps", "--frames-per-block", "--window"])
def test_counts_are_counts(option):
    assert CliRunner().invoke(app, ["stream", option, "0"]).exit_code == 2
