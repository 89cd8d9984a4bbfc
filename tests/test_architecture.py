"""The house's rules, held by the build: sizes, complexity, documentation, annotations, and who may import whom."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "reelign"
FILES = sorted(SOURCE.rglob("*.py"))

# Rooms from the ground up; a file imports from its own floor or below (docs/architecture.md).
FLOORS = (
    ("__init__", "contracts", "errors"),
    ("checkpoint", "run_folder", "video_io", "video_decode", "video_dub", "distributed", "launch", "sharding"),
    ("objectives", "optimisation", "latents", "sampling", "paths"),
    ("generators", "rewards", "guard", "metrics", "selection", "datasets", "zoo"),
    ("algorithms",),
    (
        "loop",
        "config",
        "catalogue",
        "build",
        "evaluation",
        "guarding",
        "generation",
        "translation",
        "diagnosis",
        "planted_bugs",
        "run_parts",
        "planning",
    ),
    ("selfplay", "selfplay_config", "distillation", "web"),
    ("review", "report", "plots", "tutorial", "stream"),
    ("cli", "__main__"),
)
APART = ("generators", "rewards", "algorithms")  # rooms whose files do not know the other rooms of this list
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree(path)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def imported(path: Path) -> set[str]:
    """Full names of reelign modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("reelign"):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {w if module_file(w) else node.module for w in whole}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("reelign")}
    return names


def module_file(name: str) -> Path | None:
    base = SOURCE.parent / Path(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)


def at(path: Path) -> str:
    return str(path.relative_to(SOURCE))


parametrised = pytest.mark.parametrize("path", FILES, ids=at)


@parametrised
def test_every_room_is_on_a_floor(path):
    assert room(path) in FLOOR, f"add {room(path)} to FLOORS"


@parametrised
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400


@parametrised
def test_functions_are_short_and_narrow(path):
    for function in functions(path):
        length = function.end_lineno - function.lineno + 1
        assert length <= 60, f"{function.name} has {length} lines"
        names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        names = [n for n in names if n not in ("self", "cls", "config")]
        command = path.parent.name == "cli"  # a command's options are its parameters
        assert command or len(names) <= 7, f"{function.name} has {len(names)} parameters"


BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)


def depth(node: ast.AST, level: int = 0) -> int:
    """Deepest nesting of blocks below ``node``; an ``elif`` does not nest."""
    deepest = level
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                continue
            chained = isinstance(node, ast.If) and field == "orelse" and isinstance(child, ast.If)
            deeper = level + (isinstance(child, BLOCKS) and not chained)
            deepest = max(deepest, depth(child, deeper))
    return deepest


@parametrised
def test_functions_nest_little(path):
    for function in functions(path):
        assert depth(function) <= 3, f"{function.name} nests {depth(function)} deep"


@parametrised
def test_public_names_are_documented(path):
    assert ast.get_docstring(tree(path)), "the module has no docstring"
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            nested = isinstance(node, ast.FunctionDef) and node not in _public_functions(path)
            assert nested or ast.get_docstring(node), f"{node.name} has no docstring"


def _public_functions(path: Path) -> list[ast.AST]:
    module = tree(path)
    classes = [n for n in module.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    return [n for owner in (module, *classes) for n in owner.body if isinstance(n, ast.FunctionDef)]


@parametrised
def test_annotations_are_complete(path):
    for function in functions(path):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not missing, f"{function.name}: {missing} without annotation"
        assert function.returns is not None, f"{function.name} without a return annotation"


@parametrised
def test_imports_go_down(path):
    for name in imported(path):
        parts = name.split(".")
        other = parts[1] if len(parts) > 1 else "__init__"
        assert FLOOR[other] <= FLOOR[room(path)], f"{at(path)} imports {name}, which is above it"
        sideways = room(path) in APART and other in APART and FLOOR[other] == FLOOR[room(path)]
        assert not (sideways and other != room(path)), f"{at(path)} imports {name}, sideways"


def test_imports_have_no_cycle():
    graph = {path: {f for n in imported(path) if (f := module_file(n)) and f != path} for path in FILES}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " → ".join(at(p) for p in (*trail[trail.index(path) :], path))
        if path not in done:
            for other in graph[path]:
                visit(other, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


@parametrised
def test_exceptions_are_not_swallowed(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
            assert raises or not broad, f"line {node.lineno} catches everything and raises nothing"
        called = isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", ""))
        assert called != "nan_to_num"
        assert called != "print" or room(path) == "cli" or isinstance(node.func, ast.Attribute)


def test_the_command_line_starts_without_torch():
    import subprocess

    code = "import sys; import reelign.catalogue, reelign.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "command", [("check", "--no-cache"), ("format", "--check", "--no-cache")], ids=["check", "format"]
)
def test_ruff(command):
    """Style, and cyclomatic complexity of at most 10 (rule C901)."""
    import shutil
    import subprocess

    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff"
    result = subprocess.run([ruff, *command, "."], cwd=SOURCE.parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
