"""Which package may import which: scripts use all, the packages below only what is listed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"GS2D", "datasets", "losses", "models", "utils"}
ALLOWED = {
    "utils": set(),
    "GS2D": {"utils"},
    "models": {"utils"},
    "losses": {"GS2D", "utils"},
    "datasets": {"GS2D", "utils"},
}


def imports(path):
    """(node, top-level package) of every import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_directions(package):
    for path in (ROOT / package).rglob("*.py"):
        siblings = {name for _, name in imports(path)} & PACKAGES - {package}
        assert siblings <= ALLOWED[package], f"{path} imports {siblings - ALLOWED[package]}"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_no_sibling_is_imported_inside_a_function(package):
    """No exception: what is imported late is a heavy or optional package of others, such as gsplat, matplotlib or geomloss."""
    for path in (ROOT / package).rglob("*.py"):
        tops = {node.lineno for node in ast.parse(path.read_text()).body}
        late = [node.lineno for node, name in imports(path) if name in PACKAGES - {package} and node.lineno not in tops]
        assert not late, f"{path}: lines {late}"


def test_no_circles():
    """Every package stands on those that come before it."""
    order = ["utils", "GS2D", "models", "losses", "datasets"]
    for package, allowed in ALLOWED.items():
        assert all(order.index(name) < order.index(package) for name in allowed)


def test_utils_is_small():
    modules = [path.stem for path in (ROOT / "utils").glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 12, sorted(modules)
