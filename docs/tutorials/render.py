"""Turns the tutorial's scripts into pages: markdown cells as they are, code cells with what they print.

Run: ``python docs/tutorials/render.py`` renders all (minutes), ``… 03_masks`` those whose names begin so.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "self_forcing"
OUTPUT = re.compile(r"\n```text\n.*?\n```\n", re.DOTALL)


def cells(script: str) -> list[tuple[str, str]]:
    """``markdown`` or ``code``, and the text, of each cell of a percent-format script."""
    found = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        if "[markdown]" in head:
            lines = (line.removeprefix("#").removeprefix(" ") for line in body.strip("\n").split("\n"))
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body.strip("\n")))
    return found


def page(script: str, outputs: list[str] | None = None) -> str:
    """The page of a script; ``outputs`` are what its code cells printed."""
    said, parts = iter(outputs or []), []
    for kind, text in cells(script):
        if kind == "markdown":
            parts.append(text + "\n")
            continue
        shown = next(said, "").rstrip()
        parts.append(f"```python\n{text}\n```\n" + (f"\n```text\n{shown}\n```\n" if shown else ""))
    return "\n".join(parts)


def without_outputs(text: str) -> str:
    """A rendered page as it would be if nothing had been printed."""
    return OUTPUT.sub("", text)


def run(path: Path) -> list[str]:
    """What each code cell of a script prints, run in order in one namespace."""
    sys.path.insert(0, str(path.parent))
    names: dict[str, object] = {"__name__": "__main__", "__file__": str(path)}
    outputs = []
    for kind, text in cells(path.read_text(encoding="utf-8")):
        if kind == "code":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(text, str(path), "exec"), names)
            outputs.append(printed.getvalue())
    return outputs


def main() -> None:
    """Render the scripts whose names begin as asked."""
    wanted = tuple(sys.argv[1:]) or ("",)
    for path in sorted(FOLDER.glob("0*.py")):
        if path.stem.startswith(wanted):
            text = page(path.read_text(encoding="utf-8"), run(path))
            path.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
