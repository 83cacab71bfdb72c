"""Which package may import which: scripts use all, the packages below only what is listed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"GS2D", "datasets", "losses", "models", "utils"}
ALLOWED = {"GS2D": {"utils"}, "models": {"utils"}, "utils": set(), "losses": {"GS2D"}, "datasets": {"GS2D", "utils"}}


def imported_packages(tree):
    for node in tree:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_directions(package):
    """Imports inside functions do not count: the scripts that live in GS2D need them to run the other packages."""
    for path in (ROOT / package).rglob("*.py"):
        siblings = set(imported_packages(ast.parse(path.read_text()).body)) & PACKAGES - {package}
        assert siblings <= ALLOWED[package], f"{path} imports {siblings - ALLOWED[package]}"


def test_no_file_grows_beyond_400_lines():
    for path in [*ROOT.glob("*.py"), *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))]:
        assert len(path.read_text().splitlines()) <= 400, f"{path} wants to be two files"
