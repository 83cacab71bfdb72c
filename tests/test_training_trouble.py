"""Training when something goes wrong: not finite, not readable, out of memory, killed, another run's files."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from commands import errors
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from training_runs import Tiny, checkpoint, largest_difference, metrics, train, two_processes, weights

from datasets.loading import EpochSampler
from utils.files import list_images

pytestmark = pytest.mark.usefixtures("tiny")

BROKEN = {
    "density": lambda density: density * float("nan"),
    "loss": lambda density: density * 0 + 3e38,  # finite, but their sum is not
    "gradient": lambda density: density + (density * 0).sqrt(),  # 0, with derivative infinity * 0
}


def break_at(monkeypatch, numbers, kind):
    """The densities of batches ``numbers`` of the run are broken; -> one entry for each batch that was tried."""
    calls = []

    class Broken(Tiny):
        def forward(self, images):
            prediction = super().forward(images)
            calls.extend([1] * self.training)
            here = self.training and len(calls) - 1 in numbers
            return prediction._replace(density=BROKEN[kind](prediction.density)) if here else prediction

    monkeypatch.setattr("train_gs.build_model", Broken)
    return calls


@pytest.mark.parametrize(
    ("kind", "number", "accumulate", "size"),
    [
        ("density", 6, 1, 1),
        ("density", 3, 2, 1),
        ("loss", 2, 2, 1),
        ("loss", 1, 1, 2),
        ("gradient", 1, 1, 1),
        ("gradient", 2, 2, 1),
    ],
)
def test_what_is_not_finite_stops_the_run_before_anything_of_its_epoch_is_written(
    data, tmp_path, monkeypatch, kind, number, accumulate, size
):
    """All images of the batch are named, or of the step for a gradient; the epochs before are there, as without it."""
    options = ["--lr", 1e-3, "--ema", 0.75, "--accumulate", accumulate, "--batch-size", size, "--epochs"]
    epoch, batch = divmod(number, 4 // size)
    train(data, tmp_path / "whole", *options, 1)
    calls = break_at(monkeypatch, [number], kind)
    _, err = train(data, tmp_path / "run", *options, 2, code=1)
    assert len(calls) == 4 // size * (epoch + 1)  # looked at when an epoch of four batches is over
    order = list_order(data, epoch)
    first = batch // accumulate * accumulate
    batches = range(first, first + accumulate) if kind == "gradient" else range(batch, batch + 1)
    names = ", ".join(order[batches.start * size : batches.stop * size])
    what = "gradient" if kind == "gradient" else "loss"
    (line,) = errors(err)
    assert line.startswith(
        f"error: epoch {epoch}, batch {batches[-1]}: the {what} of {names} is not finite; lower --lr"
    )
    assert (
        len(list((tmp_path / "run").glob("*_ckpt.tar"))) == epoch and not (tmp_path / "run" / "best_model.pth").exists()
    )
    if epoch:
        assert largest_difference(weights(tmp_path / "run"), weights(tmp_path / "whole")) == 0


def list_order(data, epoch):
    """The names of the training images, in the order of an epoch."""
    return [list_images(data / "train")[index].stem for index in EpochSampler(4, 4073).order(epoch)]


@pytest.fixture
def float16(monkeypatch):
    """Precision with a scaler, as a GPU has it -> a function that sets the scale it begins with."""

    def begin_with(scale):
        plugin, fabric = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale)), Fabric
        start = lambda precision, **options: fabric(**options, plugins=[plugin])  # noqa: E731
        monkeypatch.setattr("lightning_fabric.Fabric", start)
        return plugin.scaler

    return begin_with


def test_with_float16s_scaler_too_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, monkeypatch, float16):
    float16(2.0)
    break_at(monkeypatch, [2], "density")
    _, err = train(data, tmp_path, "--epochs", 1, "--lr", 1e-3, "--ema", 0.75, code=1)
    assert "epoch 0, batch 2: the loss of" in errors(err)[0]


@pytest.mark.parametrize(("broken", "scale"), [(range(99), 2.0**-13), ([1], 4.0), ((), 0.25)])
def test_only_float16_that_no_scale_helps_stops_the_run(data, tmp_path, monkeypatch, float16, broken, scale):
    """A gradient that is not finite is left out, and the scale halved."""
    scaler = float16(scale)
    break_at(monkeypatch, broken, "gradient")
    monkeypatch.setattr("utils.training.steps.CHECK_EVERY", 2)
    _, err = train(data, tmp_path, "--epochs", 3, code=1 if len(broken) > 1 else 0)
    if len(broken) > 1:
        (line,) = errors(err)  # below 2^-16: seen after the fourth step
        assert line.startswith("error: epoch 0, batch 3: the gradient of") and "is not finite; lower --lr" in line
    else:
        assert scaler.get_scale() == scale / 2 ** len(broken)
        assert all(value.isfinite().all() for value in weights(tmp_path).values())


def line_of_both(*arguments, **environment):
    """The line with which both processes end, without waiting for a broken connection, where one of them meets something."""
    (code, _, err), (other_code, _, other_err) = two_processes(*arguments, "--epochs", 3, "--lr", 1e-3, **environment)
    assert code == other_code == 1 and errors(err) == errors(other_err) and "Traceback" not in err + other_err, (
        other_err
    )
    (line,) = errors(err)
    return line


def test_two_processes_stop_together(data, tmp_path):
    line = line_of_both(data, tmp_path, BROKEN_RANK="0")
    first, second = list_order(data, 1)[0], list_order(data, 1)[1]
    assert f"epoch 1, batch 0: the loss of {first} is not finite" in line and second not in line
    assert checkpoint(tmp_path)["epoch"] == 0 and all(value.isfinite().all() for value in weights(tmp_path).values())


@pytest.mark.parametrize(("split", "done"), [("train", 0), ("val", 1)])
def test_a_file_that_one_process_cannot_read_stops_both_with_its_line(data, tmp_path, split, done):
    copy = shutil.copytree(data, tmp_path / "data")
    for path in (copy / "val").glob("*.*"):  # two images, one for each process
        shutil.copy(path, path.with_name("COPY" + path.suffix))
    options = "--val-start", 0, "--val-every", 1
    line = line_of_both(copy, tmp_path / "run", *options, UNREADABLE_RANK="1", UNREADABLE_SPLIT=split)
    assert str(copy / split) in line and "cannot be read" in line
    assert [path.name for path in (tmp_path / "run").glob("*.tar")] == [f"{done}_ckpt.tar"]


def test_a_corrupt_sample_stops_the_run_or_is_skipped(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    bad = copy / "train" / "IMG_0002.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    options = ["--epochs", 2, "--num-workers", 1]
    _, err = train(copy, tmp_path / "stops", *options, code=1)
    assert len(errors(err)) == 1 and str(bad) in err
    _, err = train(copy, tmp_path / "skips", *options, "--skip-bad-samples")
    assert err.count("skipped: ") == 2 and str(bad) in err
    assert [line["skipped"] for line in metrics(tmp_path / "skips")] == [1, 1]
    for image in (copy / "train").glob("*.jpg"):
        image.write_bytes(b"no picture")
    _, err = train(copy, tmp_path / "none", *options, "--skip-bad-samples", code=1)
    assert "none of 4 images can be used" in errors(err)[-1]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried"), None], ids=repr)
def test_every_lack_of_memory_says_what_to_lower(data, tmp_path, monkeypatch, error):
    def forward(network, images):
        if error:
            raise error
        images.new_empty(1 << 60)

    monkeypatch.setattr(Tiny, "forward", forward)
    (line,) = errors(train(data, tmp_path, "--epochs", 1, "--batch-size", 3, code=1)[1])
    assert re.match("error: .*out of memory.*; lower one of --batch-size 3 and --crop-size 64", line)


def test_a_damaged_checkpoint_is_refused_and_not_begun_anew(data, tmp_path):
    train(data, tmp_path, "--epochs", 1)
    path = tmp_path / "0_ckpt.tar"
    path.write_bytes(path.read_bytes()[:9000])
    for resume in ("auto", path):
        _, err = train(data, tmp_path, "--epochs", 2, "--resume", resume, code=1)
        assert len(errors(err)) == 1 and f"{path}: not a readable PyTorch weights file" in err


def test_released_checkpoints_start_a_run(data, tmp_path):
    """The released trainer writes three keys, with an Adam of an older PyTorch; and bare weights."""
    train(data, tmp_path / "whole", "--epochs", 4)
    train(data, tmp_path / "part", "--epochs", 2)
    content, path = checkpoint(tmp_path / "part"), tmp_path / "1_ckpt.tar"
    released = {key: content[key] for key in ("epoch", "optimizer_state_dict", "model_state_dict")}
    groups = released["optimizer_state_dict"]["param_groups"]
    for group in groups:
        for key in set(group) - {"lr", "betas", "eps", "weight_decay", "amsgrad", "params"}:
            del group[key]
    for entry in released["optimizer_state_dict"]["state"].values():
        entry["step"] = int(entry["step"])
    without_fused = {"fused": None, "foreach": True, "capturable": False, "maximize": False, "differentiable": False}
    for name, more in (("older", {}), ("without the fused step", without_fused)):
        for group in groups:
            group |= more
        torch.save(released, path)
        out, _ = train(data, tmp_path / name, "--epochs", 4, "--resume", path)
        assert "going on with epoch 2" in out and [line["epoch"] for line in metrics(tmp_path / name)] == [2, 3]
        assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / name)) == 0

    torch.save(released["model_state_dict"], tmp_path / "best_model.pth")
    out, _ = train(data, tmp_path / "weights", "--epochs", 1, "--resume", tmp_path / "best_model.pth")
    assert "training begins with them at epoch 0" in out
    assert 0 < largest_difference(released["model_state_dict"], weights(tmp_path / "weights")) <= 4 * 5e-6 * 1.01
