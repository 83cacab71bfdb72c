"""A disk that is full or read-only, files that vanish or cannot be read, two runs at once, clocks, killed workers."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import harness
import pytest
from commands import call, errors
from forked import Started

import datasets.crowd
import datasets.raw.preprocess
import GS2D.build_kernels
import GS2D.fit_dataset
import GS2D.process_gaussians
import utils.cli
from utils.files import list_images, points_path
from utils.lock import lock_folder

STAGES = ("preprocess", "splat", "clean", "kernels", "train", "test")


@pytest.fixture
def disk(tmp_path):
    """A file system of sixteen megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def work(stages, tmp_path):
    """A function that copies a stage's inputs and gives the copy and the command's arguments."""

    def copy(name, folder=tmp_path / "work"):
        shutil.copytree(stages[name].inputs, folder, dirs_exist_ok=True)
        return folder, stages[name].script, stages[name].arguments(folder)

    return copy


@pytest.mark.parametrize("name", STAGES)
def test_a_full_disk_is_one_line_and_what_is_there_is_whole(name, work, disk, tmp_path):
    folder, script, arguments = work(name, disk / "work")
    before = harness.contents(folder)
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - (8192 if name != "train" else 32768))
    code, output = harness.run(script, arguments)
    assert code == 1 and "Traceback" not in output, output
    lines = errors(output)
    assert lines and all(str(disk) in line for line in lines if "failed; mend" not in line), output
    assert "space" in output and not harness.broken(folder) and not harness.temporary(folder)
    filler.unlink()
    code, output = harness.run(script, arguments)
    assert code == 0 and not harness.broken(folder) and not harness.temporary(folder), output
    assert harness.contents(folder).keys() > before.keys() or name == "clean"


@pytest.mark.parametrize("name", STAGES)
def test_a_read_only_disk_is_one_line_and_what_is_finished_runs_again(name, work, disk):
    folder, script, arguments = work(name, disk / "work")
    before = harness.contents(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    code, output = harness.run(script, arguments)
    assert code == 1 and "Traceback" not in output and "Read-only file system" in errors(output)[0], output
    assert str(disk) in errors(output)[0] and harness.contents(folder) == before
    if name not in ("train", "test"):
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert harness.run(script, arguments)[0] == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, output = harness.run(script, arguments)
        assert code == 0 and "error" not in output


@pytest.mark.parametrize("kind", ["folder", "loop", "dangling"])
@pytest.mark.parametrize("name", STAGES)
def test_an_unreadable_input_is_named(name, kind, work, tiny):
    folder, script, arguments = work(name)
    split = {"preprocess": "raw/Train", "test": "data/val"}.get(name, "data/train")
    image = list_images(folder / split)[0]
    path = folder / split / "gs_params" / f"{image.stem}_gs_params.h5" if name == "clean" else image
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(path if kind == "loop" else "nowhere")
    _, err = call(script, *arguments, code=1)
    assert any(str(path) in line for line in errors(err)) and len(errors(err)) <= 2, err


def test_a_file_that_vanishes_after_it_was_listed(work, monkeypatch, tmp_path):
    """Each stage names it and does the rest."""
    real = utils.cli.for_each

    def vanish(function, items, *rest, **options):
        item = items[-1]
        Path(getattr(item, "image", item)).unlink()
        return real(function, items, *rest, **options)

    for module in (datasets.raw.preprocess, GS2D.fit_dataset, GS2D.process_gaussians, GS2D.build_kernels):
        monkeypatch.setattr(module, "for_each", vanish)
    for name in ("preprocess", "splat", "clean", "kernels"):
        folder, script, arguments = work(name, tmp_path / name)
        before = {path for path in folder.rglob("*") if path.is_file()}
        _, err = call(script, *arguments, code=1)
        (gone,) = before - {path for path in folder.rglob("*") if path.is_file()}
        lines = errors(err)
        assert len(lines) == 2 and str(gone) in lines[0] and lines[1].startswith("error: 1 of "), err
        assert not harness.broken(folder)


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("preprocess", "data"),
        ("clean", "data/train/gs_params"),
        ("kernels", "data/train/kernels"),
        ("train", "run"),
        ("test", "out"),
    ],
)
def test_a_second_run_on_the_same_folder_says_who_is_there(name, held, work, tiny):
    folder, script, arguments = work(name)
    (folder / held).mkdir(parents=True, exist_ok=True)
    before = harness.contents(folder)
    with lock_folder(folder / held):
        _, err = call(script, *arguments, code=1)
    (line,) = errors(err)
    assert line.startswith(f"error: {folder / held}: in use by process {os.getpid()} on ")
    assert harness.contents(folder) == before
    call(script, *arguments)
    assert not harness.temporary(folder)


def test_two_preparations_at_once(work):
    folder, script, arguments = work("preprocess")
    harness.run(script, arguments)
    expected = harness.contents(folder)
    shutil.rmtree(folder / "data")
    runs = [harness.end(run) for run in [Started(script, arguments) for _ in range(2)]]
    assert sorted(runs)[0][0] == 0  # the other was refused, or came when this one had ended
    assert all("in use by process" in output for code, output in runs if code)
    assert harness.contents(folder) == expected


def test_several_fits_of_one_folder_at_once_do_double_work_at_worst(work):
    folder, script, arguments = work("splat")
    harness.run(script, arguments)
    expected = harness.contents(folder)
    shutil.rmtree(folder / "data" / "train" / "gs_params")
    shares = [], [], ["--shard", "1/2"], ["--shard", "2/2"]
    runs = [harness.end(run) for run in [Started(script, [*arguments, *share]) for share in shares]]
    assert [code for code, _ in runs] == [0] * 4, runs
    assert harness.contents(folder) == expected and not harness.temporary(folder)


def test_clocks_do_not_matter(work, tmp_path):
    """Inputs dated 2096, then all but raw files 1970; only raw files that changed their date are prepared again."""
    for name in STAGES:
        folder, script, arguments = work(name, tmp_path / name)
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (4_000_000_000,) * 2)
        code, output = harness.run(script, arguments)
        assert code == 0, output
        expected = harness.contents(folder)
        for path in folder.rglob("*"):
            if "raw" not in path.parts:
                os.utime(path, (0, 0))
        code, output = harness.run(script, arguments)
        assert code == 0 and harness.contents(folder) == expected, output
        if name == "preprocess":
            os.utime(list_images(folder / "raw" / "Train")[0], (1, 1))
            code, output = harness.run(script, arguments)
            changed = harness.differences(expected, harness.contents(folder))
            assert "prepared 1 images" in output and changed == ["data/preprocess.jsonl differs"]


def children(process):
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def kill_a_worker(process, name=b""):
    """SIGKILL, as the kernel does where memory runs out, to a child that runs a program of this name.

    A child that is about to become another program has its parent's name for a moment.
    """
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in children(process):
            with contextlib.suppress(FileNotFoundError):
                named = []
                for _ in range(2):
                    named.append(name in Path(f"/proc/{child}/cmdline").read_bytes())
                    time.sleep(0.05)
                if all(named):
                    os.kill(child, signal.SIGKILL)
                    return
        time.sleep(0.01)
    raise AssertionError("no worker was started")


@pytest.mark.parametrize("name", ["preprocess, 2 workers", "train"])
def test_a_worker_that_the_kernel_kills(name, work):
    folder, script, arguments = work(name)
    if name == "train":
        arguments = [*arguments, "--num-workers", "1", "--epochs", "200"]
    run = Started(script, arguments)
    kill_a_worker(run.pid, b"spawn_main" if name != "train" else b"forkserver")
    code, output = harness.end(run)
    (line,) = errors(output)
    assert code == 1 and "out of memory" in line and "-workers" in line and "Traceback" not in output
    assert not harness.broken(folder)
    again = [*arguments, *(("--epochs", "2") if name == "train" else ("--workers", "1"))]
    code, output = harness.run(script, again)
    assert code == 0 and not harness.temporary(folder), output
    assert all(points_path(image).exists() for image in list_images(folder / "data" / "train"))
