"""A hash of code, so that what was made by other code is made again.

Only what is executed counts: formatting, comments and docstrings don't.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
MAKING = ("models", "pipeline")  # the rooms whose code decides how a clip comes out


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 (hexadecimal) of the code in `files`, in their order."""
    digest = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                continue
            if ast.get_docstring(node) is not None:
                del node.body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def making_code() -> str:
    """The fingerprint of the code that makes clips: networks, sampler, joins."""
    return fingerprint(file for room in MAKING for file in sorted((PACKAGE / room).glob("*.py")))
