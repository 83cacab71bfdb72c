"""What the project's Markdown files contain: fenced blocks, commands, code spans, and whether a name in them exists."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from commands import ROOT

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = "GS2D datasets losses models utils".split()
FOLDERS = [*PACKAGES, *"configs scripts examples tests benchmarks docs".split()]


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text, and what the ``text`` block right after it holds."""

    doc: Path
    line: int
    language: str
    text: str
    output: str | None

    @property
    def place(self) -> str:
        return f"{self.doc.relative_to(ROOT)}:{self.line}"


class Command(NamedTuple):
    """One command of a ``bash`` block."""

    block: Block
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def script(self) -> tuple[str, list[str]] | None:
        """The Python script it starts, by any launcher, with its arguments."""
        words = list(self.words)
        for i, word in enumerate(words):
            if word == "-m" and Path(words[i - 1]).name.startswith("python"):
                return words[i + 1].replace(".", "/") + ".py", words[i + 2 :]
            if word.endswith(".py") and (i == 0 or words[0] == "torchrun" or Path(words[i - 1]).name == "python"):
                return word, words[i + 1 :]
        return None


def blocks(language):
    fence = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.M | re.S)
    for doc in DOCS:
        text = doc.read_text(encoding="utf-8")
        for found in fence.finditer(text):
            if found[1] == language:
                yield Block(doc, text.count("\n", 0, found.start()) + 1, *found.groups())


def split(block):
    """The commands of a block: continued lines joined, comments and assignments before the command taken off."""
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for operator, words in itertools.groupby(lexer, lambda word: set(word) <= set("&|;<>()")):
            words = list(itertools.dropwhile(lambda word: re.match(r"\w+=", word), words))
            if words and not operator:
                yield Command(block, (re.sub(r"^(\.venv/bin/)(?=python|ruff)", "", words[0]), *words[1:]))


COMMANDS = [command for block in blocks("bash") for command in split(block)]


def spans(doc):
    """The `code` spans of a document outside fenced blocks, each once."""
    text = re.sub(r"^```.*?^```$", "", doc.read_text(encoding="utf-8"), flags=re.M | re.S)
    return sorted(set(re.findall(r"(?<![`$])`([^`\n]+)`(?![`$])", text)))


def braces(text):
    """a_{b,c}.py as a_b.py and a_c.py."""
    found = re.search(r"\{([^}]*)\}", text)
    return [text] if not found else [text.replace(found[0], choice) for choice in found[1].split(",")]


def defines(body, names):
    for node in body:
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        assigned = {n.id for t in targets if t is not None for n in ast.walk(t) if isinstance(n, ast.Name)}
        if getattr(node, "name", None) == names[0] or names[0] in assigned:
            return len(names) == 1 or defines(node.body, names[1:])
    return False


def importable(dotted):
    module, _, rest = dotted, "", []
    while True:
        with contextlib.suppress(ModuleNotFoundError):
            value = importlib.import_module(module)
            return functools.reduce(lambda v, name: getattr(v, name, None), rest, value) is not None
        module, _, name = module.rpartition(".")
        rest.insert(0, name)
