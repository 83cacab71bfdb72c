"""Which package may import which: scripts use all, the packages below only what is listed, so that there are no circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {
    "utils": set(),
    "GS2D": {"utils"},
    "models": {"utils"},
    "losses": {"GS2D", "utils"},
    "datasets": {"GS2D", "utils"},
}
OPTIONAL = {"geomloss", "gsplat", "onnx", "onnxruntime", "safetensors", "torchvision"}


def imports(path):
    """(top-level package, whether it stands at the top of the file) of every import of a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], node in tree.body


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_directions(package):
    """Siblings are imported at the top of a file, and only those below; what is optional is imported where it is used."""
    for path in (ROOT / package).rglob("*.py"):
        found = set(imports(path))
        siblings = {(name, at_top) for name, at_top in found if name in ALLOWED.keys() - {package}}
        assert siblings <= {(name, True) for name in ALLOWED[package]}, f"{path} imports {siblings}"
        assert not found & {(name, True) for name in OPTIONAL}, path


def test_utils_is_small():
    modules = [path.stem for path in (ROOT / "utils").glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 12, sorted(modules)
