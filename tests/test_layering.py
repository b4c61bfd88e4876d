"""Who may import whom (CONTRIBUTING.md). Read from the source, so nothing has to be imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sora_cli"
FILES = sorted(PACKAGE.rglob("*.py"))

# A room's modules must import nothing of these, not even inside a function.
FORBIDDEN = {
    "models": ("pipeline", "runtime", "weights", "media", "train", "eval", "bench", "app"),
    "media": ("pipeline", "models", "weights", "train", "app"),
    "pipeline": ("media", "weights.store", "train", "app"),
    "weights": ("pipeline", "media", "train", "app"),
    "runtime": ("pipeline", "models", "weights", "media", "train", "app"),
    "train": ("media", "app"),
}

# These are read before it is known that anything will be computed, so importing them is quick.
WITHOUT_TORCH = (
    "errors.py",
    "about.py",
    "app.py",
    "cli",
    "jobs",
    "pipeline/request.py",
    "pipeline/events.py",
    "models/specs.py",
    "weights/manifest.py",
    "weights/store.py",
    "media/recipe.py",
    "runtime/device.py",
    "runtime/plan.py",
    "runtime/shapes.py",
    "runtime/costs.py",
    "runtime/costs_vae.py",
    "runtime/memory.py",
    "runtime/paths.py",
    "runtime/preferences.py",
)
HEAVY = ("torch", "transformers", "diffusers", "tokenizers", "safetensors")


def imports(tree: ast.AST) -> list[str]:
    """Every imported module below this node, as absolute dotted names."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def imports_when_loaded(tree: ast.Module) -> list[str]:
    """The imports that run when the module is imported: not in functions, not for types only."""
    names: list[str] = []
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names += imports(node)
        for field in ("body", "orelse", "finalbody", "handlers"):
            for child in getattr(node, field, []):
                pending += child.body if isinstance(child, ast.ExceptHandler) else [child]
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_lies_below_them(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0]
    found = imports(parse(path))
    for target in FORBIDDEN.get(room, ()):
        bad = [name for name in found if within(name, f"sora_cli.{target}")]
        assert not bad, f"{relative} ({room}) imports {bad}"
    if room not in ("cli", "__main__.py"):
        bad = [name for name in found if within(name, "sora_cli.cli")]
        assert not bad, f"{relative} imports {bad}: nothing imports the command line"


def test_errors_imports_nothing_of_ours() -> None:
    assert not [n for n in imports(parse(PACKAGE / "errors.py")) if within(n, "sora_cli")]


# The verbs, and what stands between them and a written file.
JOINING = ("about.py", "app.py", "batch.py", "jobs/")


def test_only_the_verbs_join_pipeline_to_media() -> None:
    for path in FILES:
        relative = path.relative_to(PACKAGE)
        found = imports(parse(path))
        pipeline, media = (
            any(within(name, f"sora_cli.{room}") for name in found)
            for room in ("pipeline", "media")
        )
        joined = pipeline and media
        assert not joined or relative.as_posix().startswith(JOINING), f"{relative} joins them"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_quick_modules_load_nothing_heavy(name: str) -> None:
    target = PACKAGE / name
    paths = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert paths
    for path in paths:
        for found in imports_when_loaded(parse(path)):
            bad = [heavy for heavy in HEAVY if within(found, heavy)]
            assert not bad, f"{path.relative_to(PACKAGE)} loads {bad} when imported"


def test_imports_are_absolute_and_click_is_never_imported() -> None:
    for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]:
        tree = parse(path)
        relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
        assert not relative, f"{path} has relative imports"
        # Typer carries its own copy of click; the real one may not be installed.
        assert not [n for n in imports(tree) if within(n, "click")], path
