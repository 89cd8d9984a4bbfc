"""Who may come in, as the command line says it."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from reelign.errors import ConfigError

SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """Who may come in.

    Args:
        token: secret to sign in with; None asks for none.
        hosts: host names that are ours, besides localhost and addresses in digits.
        cookie: its name; cookies do not know ports, so each kind of page has one of its own.
    """

    token: str | None = None
    hosts: tuple[str, ...] = ()
    cookie: str = "reelign_session"


def allowed_hosts(names: Iterable[str]) -> tuple[str, ...]:
    """Host names to answer to, as the gate wants them: lower case, without port."""
    return tuple(name.lower().rsplit(":", 1)[0] for name in names)


def is_loopback(host: str) -> bool:
    """Whether a server on this address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def wanted_token(host: str, token: str | None) -> str | None:
    """The token to ask for: none on this machine only, unless one was given.

    Raises:
        ConfigError: the token given is short.
    """
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(
            f"a token has at least {SHORTEST_TOKEN} letters; got {len(token)}: leave it out for a fresh one"
        )
    return token if token is not None or is_loopback(host) else secrets.token_urlsafe(24)
