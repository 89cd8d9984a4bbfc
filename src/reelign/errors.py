"""Every error reelign raises on purpose.

    ReelignError                 one clear line for the user, exit code 2
    ├── ConfigError              a run file, override or option is wrong
    │   └── UnknownNameError     a name nobody knows, with the nearest one that exists
    ├── DataError                a prompt, clip, folder or table is wrong
    │   └── ClipError            one clip cannot be read
    ├── ModelError               a model folder or checkpoint is missing or does not fit
    ├── ContractError            a generator, reward or algorithm broke its contract
    ├── NonFiniteError           a loss, gradient or reward stopped being a number
    ├── RunFolderError           a run folder cannot be written or resumed
    └── ProcessError             another process of the same run failed or is gone

Each message states the rule, the value received and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReelignError(Exception):
    """Base of all errors that are the user's to mend; the command line prints them as one line."""


class ConfigError(ReelignError):
    """A run file, an override or an option is wrong."""


class UnknownNameError(ConfigError):
    """A name that no table holds.

    Args:
        kind: what was looked up, for example ``reward``.
        name: what the user wrote.
        known: every name that exists; the nearest is suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class DataError(ReelignError):
    """A prompt, clip, folder or table is wrong."""


class ClipError(DataError):
    """One clip cannot be read; the message says why."""


class ModelError(ReelignError):
    """A model folder or checkpoint is missing or does not fit."""


class ContractError(ReelignError):
    """A generator, reward or algorithm returned something its contract forbids."""


class NonFiniteError(ReelignError):
    """A loss, gradient or reward is NaN or infinite."""


class RunFolderError(ReelignError):
    """A run folder cannot be written or resumed."""


class ProcessError(ReelignError):
    """Another process of the same run failed or is gone; the message says which and why."""
