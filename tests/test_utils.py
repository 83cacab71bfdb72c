"""Options, files, evaluation and checkpoints."""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tqdm import tqdm

from models import build_model, read_checkpoint
from utils.cli import ProgressBar, for_each, report_failures, run_script
from utils.config import make_parser, number, option_values, parse_arguments
from utils.evaluation import Result, evaluate, mae_mse, tile
from utils.files import atomic_write, gaussians_path, kernel_path, list_images, points_path, remove_stale_partials
from utils.training.run_folder import describe, save_weights


def parser():
    p = make_parser("test")
    p.add_argument("--lr", type=number(float, 0, above=True), default=1e-5)
    p.add_argument("--steps", type=number(int, 1), default=3)
    p.add_argument("--mask", action=argparse.BooleanOptionalAction, default=True)
    p.add_argument("--mode", choices=("a", "b"), default="a")
    p.add_argument("--data-dir", "--root-path", type=Path, required=True)
    p.add_argument("--splits", nargs="+", default=["train"])
    return p


def parse(tmp_path, text, *argv, **kwargs):
    (tmp_path / "c.yml").write_text(text, encoding="utf-8")
    return parse_arguments(parser(), ["--config", str(tmp_path / "c.yml"), *argv], **kwargs)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    a = parse(tmp_path, "lr: 5e-6\nsteps: 7\nmask: false\ndata-dir: x\nsplits: [val, test]\n", "--steps", "9")
    assert (a.lr, a.steps, a.mask, a.mode, a.data_dir, a.splits) == (5e-6, 9, False, "a", Path("x"), ["val", "test"])
    a = parse(tmp_path, "root-path: x\nmask: false", "--mask", "--data-dir", "y")  # whatever the names
    assert a.mask is True and a.data_dir == Path("y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_mask: true", "unknown key 'no_mask'"),
        ("steps: 2.5", "--steps: '2.5' is no whole number"),
        ("steps: 0", "--steps: 0 is impossible: it must be at least 1"),
        ("lr: 0", "--lr: 0 is impossible: it must be above 0"),
        ("lr: .nan", "--lr: nan is impossible"),
        ("splits: [train, {}]", "splits: ['train', {}] is no value of this option"),
    ],
)
def test_an_impossible_value_names_its_option_and_exits_with_2(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit) as error:
        parse(tmp_path, text + "\n", "--data-dir", "x")
    output = capsys.readouterr().err
    assert error.value.code == 2 and message in output


def test_unused_keys_are_reported_and_foreign_ones_accepted(tmp_path, capsys):
    known = {"unused_keys": ["display_loss"], "foreign_keys": ["other"]}
    a = parse(tmp_path, "data_dir: x\ndisplay_loss: 1\nother: 2\n", **known)
    assert "display_loss: accepted, but without effect" in capsys.readouterr().out and not hasattr(a, "other")


def test_presets_lie_under_the_file(tmp_path):
    (tmp_path / "b.yml").write_text("mode: b\nsteps: 5\nlr: 0.5\n")
    assert parse_arguments(parser(), ["--data-dir", "x", "--mode", "b"], presets=("mode", tmp_path)).steps == 5
    a = parse(tmp_path, "mode: b\nsteps: 6\ndata_dir: x\n", presets=("mode", tmp_path))
    assert (a.mode, a.steps, a.lr) == ("b", 6, 0.5)


def test_saved_options_are_a_configuration_again(tmp_path):
    a = parse(tmp_path, "lr: 5e-6\ndata_dir: x\nmask: false\n")
    again = parse(tmp_path, yaml.safe_dump(option_values(a)))
    assert vars(again) == vars(a) and again.lr == 5e-6


def test_paths_come_from_the_stem():
    image = Path("/data.jpg/img/train.jpg/IMG_0001.jpg")
    assert points_path(image) == Path("/data.jpg/img/train.jpg/IMG_0001.npy")
    assert gaussians_path(image) == Path("/data.jpg/img/train.jpg/gs_params/IMG_0001_gs_params.h5")
    assert kernel_path(image) == Path("/data.jpg/img/train.jpg/kernels/IMG_0001_kernel.h5")
    assert points_path(Path("a/my.photo.png")).name == "my.photo.npy"


def test_list_images(tmp_path):
    for folder, message in ((tmp_path / "no", "no such folder"), (tmp_path, "holds no image")):
        with pytest.raises(FileNotFoundError, match=message):
            list_images(folder)
    for name in ("b.JPG", "a.png", ".hidden.jpg", "a.npy"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="same stem"):
        list_images(tmp_path)


def test_atomic_write_shows_whole_files_only(tmp_path):
    path = tmp_path / "x.txt"
    with atomic_write(path) as partial:
        partial.write_text("old")
        assert not path.exists() and partial.suffix == ".txt"
    with pytest.raises(RuntimeError), atomic_write(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_partial_files_of_dead_processes_go(tmp_path):
    """Also of one that nobody has waited for: it has an id, but writes no more."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with atomic_write(tmp_path / "mine.jpg") as mine:
        theirs = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{process.pid}."))
        old, new = (tmp_path / f".{name}.otherhost.1.partial.jpg" for name in "xy")
        for path in (mine, theirs, old, new):
            path.touch()
        os.utime(old, (time.time() - 90000,) * 2)
        remove_stale_partials(tmp_path)
        assert theirs.exists() and not old.exists() and new.exists() and mine.exists()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        remove_stale_partials(tmp_path)
        assert not theirs.exists() and mine.exists()
    process.wait()


@pytest.mark.parametrize(("workers", "threads"), [(1, False), (2, False), (2, True)])
def test_for_each_keeps_order_and_goes_on_after_a_failure(workers, threads, capsys):
    outcomes = list(for_each(math.sqrt, [4, -1, 16], workers, "root", threads=threads))
    assert [o.result for o in outcomes] == [2, None, 4] and outcomes[1].error == "math domain error"
    assert report_failures(outcomes) == 1 and report_failures(outcomes[:1]) == 0
    assert "error: math domain error\n" in capsys.readouterr().err


@pytest.mark.parametrize(("height", "width"), [(512, 512), (513, 100), (530, 1100), (1025, 2048), (16, 9000)])
def test_windows_cover_the_image_once(height, width):
    parts = tile(height, width)
    covered = np.zeros((height, width), int)
    for top, left, h, w in parts:
        covered[top : top + h, left : left + w] += 1
    assert (covered == 1).all() and len(parts) == -(-height // 512) * -(-width // 512)
    assert parts[0][2:] == (height // -(-height // 512), width // -(-width // 512))


class Ones(torch.nn.Module):
    """A density of 1 in each cell of 8 x 8 pixels."""

    def forward(self, images):
        return SimpleNamespace(density=torch.ones(len(images), 1, images.shape[2] // 8, images.shape[3] // 8))


def test_evaluation_by_hand():
    model, images = Ones().train(), {"a": (torch.zeros(3, 16, 24), 4), "b": (torch.zeros(3, 80, 16), 24)}
    samples = [SimpleNamespace(image=image, count=count, name=name) for name, (image, count) in images.items()]
    results = evaluate(model, samples, "cpu")
    assert model.training and results == [Result("a", 4, 6), Result("b", 24, 20)]
    assert mae_mse(results) == (3, pytest.approx(np.sqrt((4 + 16) / 2)))
    with pytest.raises(ValueError, match="no annotated image was evaluated"):
        mae_mse([])


def test_checkpoints_describe_themselves(tmp_path):
    model = build_model("vgg_trans", usenum=7)
    description = {"model_name": "vgg_trans", "topk": 0.2, "usenum": 7}
    save_weights(tmp_path / "best_model.pth", model.state_dict(), description)
    assert describe(read_checkpoint(tmp_path / "best_model.pth")) == description
    plain = torch.load(tmp_path / "best_model.pth", weights_only=True)
    assert list(plain) == list(model.state_dict())
    model.load_state_dict(plain, strict=True)
    torch.save(dict(model.state_dict()), tmp_path / "released.pth")
    assert describe(read_checkpoint(tmp_path / "released.pth")) == {"model_name": "vgg_trans", "usenum": 7}
    assert describe({"model_state_dict": build_model("vgg").state_dict()}) == {"model_name": "vgg"}


@pytest.mark.parametrize(("error", "seconds"), [(ValueError("bad"), 0), (KeyboardInterrupt(), 60)])
def test_what_ends_a_script_has_a_line_of_its_own_below_its_bar(error, seconds, capsys, monkeypatch):
    monkeypatch.setattr("utils.cli.LOG_SECONDS", seconds)

    def main():
        bar = ProgressBar(total=3)
        tqdm.write("drawn anew after this line")
        assert bar.total == 3  # it is still there
        raise error

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err.split("\n")[-2].startswith(("error: bad", "interrupted; "))


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_bar_in_a_log_file_is_whole_lines(seconds, capsys, monkeypatch):
    """tqdm draws a bar behind a line that it writes, in a log file also one that is not due yet."""
    monkeypatch.setattr("utils.cli.LOG_SECONDS", seconds)
    bar = ProgressBar(total=3)
    tqdm.write("a line", file=sys.stderr)
    for _ in range(3):
        bar.update()
    tqdm.write("a line", file=sys.stderr)
    bar.close()
    print("the final line", file=sys.stderr)
    *lines, last, end = capsys.readouterr().err.split("\n")
    bars = [line for line in lines if line != "a line"]
    assert not end and last == "the final line" and len(lines) == len(bars) + 2
    assert all(line.startswith(" ") or "it/s" in line for line in bars) and not any("\r" in line for line in bars)
    assert len(bars) >= 3 if seconds == 0 else not bars
