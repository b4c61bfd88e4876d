"""The house rules that a machine can check (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sora_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
CODE = [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]

MAX_LINES = 400
MAX_FUNCTION_LINES = 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "manager", "misc", "common"}
# Split, so that this file does not find itself.
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error")))


def is_typer_signature(node: ast.FunctionDef) -> bool:
    """A command's parameters are its declaration: one option a line."""
    return any(
        isinstance(decorator, ast.Call) and ast.unparse(decorator.func).startswith("app.")
        for decorator in node.decorator_list
    )


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert path.stem not in NAMES_THAT_SAY_NOTHING
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.FunctionDef) and is_typer_signature(node):
            continue
        assert lines_of(node) <= MAX_FUNCTION_LINES, f"{node.name} has {lines_of(node)} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_names_are_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "__init__.py":
        assert text == "", "__init__.py files are empty"
        return
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_unfinished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not UNFINISHED.search(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            # A test that does not run proves nothing.
            assert ast.unparse(node) not in ("pytest." + "skip", "pytest." + "xfail")
            assert not ast.unparse(node).startswith(("pytest.mark.skip", "pytest.mark.xfail"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_code_neither_prints_nor_exits(path: Path) -> None:
    # Recipes and measurements are programs of their own, run with `python -m`.
    if path.relative_to(PACKAGE).parts[0] in ("train", "eval", "bench"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name != "print"
            assert name not in ("sys.exit", "exit", "os._exit") or path.name == "main.py"


def test_no_comment_speaks_of_a_machine() -> None:
    """Absolute paths in comments and strings belong to somebody's machine."""
    pattern = re.compile(r"/(home|root|Users|work)/\w")
    for path in CODE:
        reader = io.BytesIO(path.read_bytes()).readline
        for token in tokenize.tokenize(reader):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                if path == Path(__file__) and "Users" in token.string:
                    continue
                assert not pattern.search(token.string), f"{path}: {token.string}"


def test_embedded_weights_fit_the_package() -> None:
    files = [path for path in (PACKAGE / "assets").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    for path in files:
        assert path.stat().st_size <= 15e6, f"{path.name} is larger than a shard may be"


def test_the_readme_is_short_and_the_versions_are_pinned() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert name.lower().replace("_", "-") in pinned, f"{name} is not in constraints.txt"


def test_changelog_has_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_reliability_names_tests_that_are_there() -> None:
    """Its matrix promises a test for every fault."""
    page = (ROOT / "docs" / "reference" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 30 and named <= set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))


def test_documentation_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
