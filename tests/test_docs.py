"""The documentation is true: its commands run, its names, options and links exist, its snippets work.

Every command of a ``bash`` block runs on stand-ins in an empty folder that links to the project, or is in ``NOT_RUN`` with the
reason; in both cases the options it names are looked up in ``--help``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import pkgutil
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from commands import ROOT, call
from raw_data import make_jhu, make_nwpu, make_raw, make_sh, make_ucf50, save_noise, write
from training_runs import Tiny

import models
import train_gs

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = "GS2D datasets losses models utils".split()
FOLDERS = [*PACKAGES, *"configs scripts examples tests benchmarks docs".split()]
DATA, RUN = "data/UCF-Train-Val-Test", "runs/qnrf_vgg"

# Commands that are not run: a pattern of the whole command, and why.
NOT_RUN = {
    r"bash scripts/demo\.sh": "ten minutes and a download; each of its stages is a command of its own",
    r"bash scripts/test\.sh": "runs this test",
    r"bash scripts/(compare_losses|experiments)\.sh": "trains for hours; tests/test_compare.py runs what it starts",
    r"bash scripts/reproduce_tables\.sh": "needs the original data sets and days on a GPU",
    r"bash scripts/pack\.sh": "installs; tests/test_model_card.py runs what it starts",
    r"python examples/onnx_count\.py": "a program of its own; tests/test_export.py runs it",
    r"mv downloads/": "files of the authors, which nobody has here",
    r"(torchrun|srun|python) .*train_gs\.py.* --(device \d+,\d|num-nodes|compile)": "several processes (tests/test_training.py), or compilation",
    r"(torchrun|srun) .*2dgs": "several processes; tests/test_fit_dataset.py divides images as they would",
    r"python -m utils\.evaluation\.report results/": "compares what two evaluations left; tests/test_report_page.py compares two",
    r"((python -m )?pip|python -m (venv|pytest)|ruff|source|cd|mkdir|export|module|apt) ?": "sets the shell or the machine up",
}
# Options that make a command quick, after those that the documentation gives: the last one wins.
QUICK = {
    "preprocess_dataset": "--workers 1 --min-size 64 --max-size 128",
    "2dgs_counting_1gs_gsplat": "--num-epochs 3 --workers 1",
    "GS2D/build_kernels": "--workers 1",
    "train_gs": "--device cpu --backbone-weights none --crop-size 64 --num-workers 0 --epochs 1",
    "test.py": "--device cpu",
    "datasets/check": "--crop-size 64 --workers 1",
    "datasets/synthetic": "--images 5 --height 64 --width 64 --min-people 1 --max-people 5 --workers 1",
    "docs/draw_pictures": "--iterations 2 --out pictures",
}
CLUSTER = set(
    "--array --nodes --ntasks --ntasks-per-node --gpus-per-node --gres --cpus-per-task --mem --time --requeue".split()
)


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


def importable(dotted):
    with contextlib.suppress(ImportError, AttributeError):
        return pkgutil.resolve_name(dotted) is not None
    return False


def reason_not_to_run(command):
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command.text)), None)


def name_of(command):
    return f"{command.block.place} {command.text[:60]}"


@functools.cache
def options_of(script):
    """All options that ``--help`` of a script of ours shows."""
    return set(re.findall(r"--[a-z][\w-]*", call(script, "--help")[0]))


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """The project by links, and stand-ins for the data sets and runs that the documentation names."""
    root = tmp_path_factory.mktemp("docs") / "project"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", "docs", "demo_output") and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        raw = make_raw(Path("data/UCF-QNRF_ECCV18"))
        names = sorted(path.name for path in (raw / "Train").glob("*.jpg"))
        write(Path("train.txt"), "\n".join(names[:4]))
        write(Path("val.txt"), "\n".join(names[4:]))
        paths = "--input-dataset-path", raw, "--output-dataset-path", DATA, "--train-list", "train.txt"
        run("preprocess_dataset_ucf.py", *paths, "--val-list", "val.txt")
        run("2dgs_counting_1gs_gsplat.py", "--splits", "train")
        run("GS2D/process_gaussians.py", "--max-ratio", 1)
        run("GS2D/build_kernels.py")
        patch.setattr(train_gs, "build_model", Tiny)
        patch.setattr(models, "build_model", Tiny)
        run("train_gs.py", "--data-dir", DATA, "--save-dir", RUN, "--max-model-num", 3)
    return root


@pytest.fixture
def workspace(template, tmp_path, monkeypatch):
    root = shutil.copytree(template, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(train_gs, "build_model", Tiny)
    monkeypatch.setattr(models, "build_model", Tiny)
    return root


def run(script, *arguments, code=0):
    quick = next((options for name, options in QUICK.items() if script.startswith(name)), "")
    return call(script, *arguments, *quick.split(), code=code)


def provide(option, value, script):
    """Make the stand-in for a path of a command that is not there yet."""
    path = Path(value)
    if option in ("--input-dataset-path", "--origin-dir"):
        makers = {"jhu": make_jhu, "nwpu": make_nwpu, "ucf": make_raw, "ucf50": make_ucf50, "points": make_points}
        makers["sh"] = lambda root: make_sh(root if root.name.startswith("part_") else root / "part_A_final")
        makers[re.match(r"preprocess_dataset_(\w+)\.py", script)[1]](path)
    elif option in ("--data-dir", "--root-path"):
        shutil.copytree(DATA, path)
    elif option in ("--save-path", "--resume"):
        source = Path(RUN, "0_ckpt.tar" if path.suffix == ".tar" else "best_model.pth" if path.suffix else "")
        path.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
    elif option == "--images" or path.suffix in (".jpg", ".png"):
        save_noise(path if path.suffix else path / "photo.jpg")


def make_points(root):
    for i in range(10):
        save_noise(root / f"{i}.jpg", seed=i)
        write(root / f"{i}.csv", "x,y\n10,12\n30,31\n")


OWN_DATA = [c for c in COMMANDS if c.block.doc.name == "own-data.md" and not reason_not_to_run(c)]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if not reason_not_to_run(c) and c not in OWN_DATA], ids=name_of
)
def test_command(command, workspace):
    assert command.script, f"{command.block.place}: {command.text!r} is neither run nor in NOT_RUN"
    script, arguments = command.script
    if script == "train_gs.py" and "--resume" not in arguments:
        shutil.rmtree("runs")
    option = None
    for word in arguments:
        option = word if word.startswith("--") else option
        if option in ("--output-dataset-path", "--out", "--save-dir"):
            shutil.rmtree(word, ignore_errors=True)
        elif word != option and not Path(word).exists():
            provide(option, word, script)
    if script.startswith("2dgs"):
        for path in workspace.rglob("gs_params/*.h5"):
            path.unlink()
    out, _ = run(script, *arguments)
    written = {"preprocess": "data/*/train/*.npy", "train_gs": "runs/**/best_model.pth"}
    assert out and all(list(Path().glob(path)) for name, path in written.items() if script.startswith(name))
    assert "MAE" in out or script != "test.py" or "--images" in arguments
    if script.startswith("2dgs") and "--shard" not in arguments:
        train = Path(arguments[arguments.index("--root-path") + 1] if "--root-path" in arguments else DATA, "train")
        assert len(list(train.glob("gs_params/*.h5"))) == len(list(train.glob("*.jpg"))) > 0


def test_from_six_photographs_of_ones_own_to_a_count(workspace):
    """The commands of docs/own-data.md one after another, as a new user would: photographs and one table of points."""
    points = np.random.default_rng(0).integers(4, 60, (6, 5, 2))
    for number in range(6):
        save_noise(Path(f"my_photos/{number}.jpg"), (64, 64), number)
    lines = [f"{number}.jpg,{x},{y}" for number in range(6) for x, y in points[number]]
    write(Path("my_photos/points.csv"), "\n".join(["image,x,y", *lines]))
    save_noise(Path("new_photos/7.jpg"))
    for command in OWN_DATA:
        script, arguments = command.script
        if script.startswith("GS2D/visualize"):
            arguments[0] = str(next(Path("data/mine/train").glob("*.jpg")))
        run(script, *arguments)
    assert len(OWN_DATA) > 8 and "MAE" in Path("results/mine/summary.json").read_text().upper()
    for path in ("gaussians.png", "runs/mine_vgg/best_model.pth", "results/new/results.csv", "exported/mine.onnx"):
        assert Path(path).stat().st_size > 50


@pytest.mark.parametrize("command", [c for c in COMMANDS if reason_not_to_run(c)], ids=name_of)
def test_options_exist(command):
    """Where a command is not run; in commands inside sentences and tables: below."""
    if command.words[0] == "bash":
        assert (ROOT / command.words[1]).is_file(), command.text
        assert not subprocess.run(["bash", "-n", ROOT / command.words[1]], capture_output=True).returncode
    elif command.script and (ROOT / command.script[0]).exists():
        script, arguments = command.script
        unknown = {word.split("=")[0] for word in arguments if word.startswith("--")} - options_of(script)
        assert not unknown, f"{command.block.place}: {script} has no {', '.join(unknown)}"


@functools.cache
def all_options():
    from torch.distributed.run import get_args_parser

    has_main = [path for path in ROOT.glob("*/*.py") if "\ndef main(" in path.read_text(encoding="utf-8")]
    scripts = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.py"), *has_main) if path.name != "hubconf.py"]
    known = set().union(*map(options_of, scripts), *(action.option_strings for action in get_args_parser()._actions))
    return known | CLUSTER | {"--help"}


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_names_exist(doc):
    """Paths of the project, options, `file: function` and `package.module.name` in sentences and tables."""
    missing = []
    for span in spans(doc):
        if found := re.fullmatch(r"([\w/]+\.py): ([\w., ]+)", span):
            text = (ROOT / found[1]).read_text() if (ROOT / found[1]).exists() else ""
            for name in found[2].replace(".", ", ").split(", "):
                defined = re.search(rf"^ *(?:(?:def|class) {name}\b|(?:\w+, )*{name}(?:, \w+)* ?[=:])", text, re.M)
                missing += [] if defined else [f"{found[1]}: {name}"]
        elif re.fullmatch(rf"({'|'.join(PACKAGES)})(\.\w+)+", span):
            missing += [span] if not importable(span) else []
        elif re.match(r"--[a-z]", span):
            missing += {word for word in span.split() if word.startswith("--")} - all_options()
        elif span.startswith("python "):
            script = Command(Block(doc, 0, "bash", span, None), tuple(span.split())).script
            known = options_of(script[0]) if script and (ROOT / script[0]).exists() else set()
            missing += [f"{span}: {w}" for w in span.split() if w.startswith("--") and w.split("=")[0] not in known]
        elif re.match(rf"({'|'.join(FOLDERS)})/|[\w*{{}},]+\.(py|ini|toml)$", span) and not re.search(r"[<\s]", span):
            missing += [span] if not all(list(ROOT.glob(name.rstrip("/"))) for name in braces(span)) else []
    assert not missing


def test_constants_have_the_stated_values():
    rows = re.findall(r"^\| `([\w/]+)\.py: (\w+)` \| ([^ |]+) \|", (ROOT / "docs/method.md").read_text(), re.M)
    assert len(rows) > 20
    for module, name, text in rows:
        value = getattr(importlib.import_module(module.replace("/", ".")), name)
        top, _, bottom = text.partition("/")
        assert value == pytest.approx(float(top) / float(bottom or 1), rel=1e-12), f"{module}: {name} is {value}"


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_links_resolve(doc):
    text = re.sub(r"^```.*?^```$", "", doc.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (doc.parent / name).resolve() if name else doc
        assert path.exists(), f"{doc.name}: {target}"
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{doc.name}: {target}"


def test_formulas_survive_markdown():
    """Inside $...$ GitHub takes the backslash off before punctuation; $`...`$ and ```math blocks keep it."""
    for doc in DOCS:
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", doc.read_text(encoding="utf-8"), flags=re.M | re.S)
        for formula in re.findall(r"\$([^$\n]+)\$", text):
            assert not re.search(r"\\[^A-Za-z ]", formula), f"{doc.name}: {formula}"


def make_rare_files():
    """What docs/formats.md speaks of besides the template: results, a synthetic data set."""
    paths = "--save-path", f"{RUN}/best_model.pth", "--data-dir", DATA
    run("test.py", *paths, "--out", "results", "--save-density", "npy")
    run("datasets/synthetic.py", "--layout", "jhu", "--out", "data/synthetic")


@pytest.mark.parametrize("doc", sorted({block.doc for block in blocks("python")}), ids=lambda doc: doc.name)
def test_python_snippets(doc, workspace):
    """One after another, as a reader would; what a ``text`` block right after one shows is what it prints."""
    if doc.name == "formats.md":
        make_rare_files()
    save_noise(Path("holiday.jpg"))
    shutil.copytree(RUN, "runs/mine_vgg")  # of docs/own-data.md
    namespace = {}
    for block in blocks("python"):
        if block.doc == doc:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, block.place, "exec"), namespace)
            assert block.output is None or out.getvalue() == block.output, block.place


@pytest.mark.parametrize("diff", list(blocks("diff")), ids=lambda block: block.place)
def test_a_diff_applies(diff):
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    done = subprocess.run(["git", "apply", "--check", "-"], cwd=ROOT, input=diff.text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
