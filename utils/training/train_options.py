"""The options of training, in groups; the defaults are the published recipe."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.cli import default_workers
from utils.config import given_values, make_parser, number, parse_arguments
from utils.files import DATASETS, OWN, REPORT, data_name, read_report
from utils.pixels import STRIDE

_GAUSSIANS = "gs_params"
PRESETS = Path(__file__).resolve().parents[2] / "configs"


def parse_train_options(
    models: Sequence[str],
    losses: Sequence[str],
    kernel_options: tuple[Callable[..., None], Callable[..., None]],
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """The options of ``train_gs.py``, over ``configs/<dataset>.yml`` and ``--config``, checked against each other.

    ``kernel_options``: what adds and what checks those of the transport kernel.
    """
    parser = make_parser("Train a density network with GST's loss or another.")
    parser.usage = "%(prog)s --data-dir P [options]"
    switch = argparse.BooleanOptionalAction

    add = parser.add_argument_group("data").add_argument
    given = given_values(argv, "data-dir", "root-path")
    root = given["data_dir"] or given["root_path"]
    report = read_report(Path(root)) if root else {}
    stated = report.get("dataset") or (OWN if report else "qnrf")
    preset_help = f"whose preset applies (default: what {REPORT} of the data says; without one, qnrf)"
    add("--dataset", choices=DATASETS, default=stated, help=preset_help)
    prepared = "prepared data set: train/ (with gs_params/), val/"
    add("--data-dir", "--root-path", type=Path, required=True, metavar="P", help=prepared)
    crop = report.get("crop_size") or 512 if stated == OWN else 512
    add("--crop-size", type=number(int, 16), default=crop, metavar="N", help="side of the training crops, pixels")
    processors, local = default_workers(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # By the devices, which are not known yet: several of them share the processors.
    workers = f"processes that load images, for each device (default: {default_loaders(processors // local)})"
    add("--num-workers", type=number(int, 0, 4096), metavar="N", help=workers)
    add("--prefetch", type=number(int, 1, 10**6), default=2, metavar="N", help="batches that each of them makes ahead")
    whole = "a crop's points count 1 from this share inside on (0: off)"
    add("--whole-targets", type=number(float, 0, 1), default=0.0, metavar="X", help=whole)
    jitter = "random change of brightness and contrast, up to this share"
    add("--jitter", type=number(float, 0, 1), default=0.0, metavar="X", help=jitter)
    add("--skip-bad-samples", action=switch, default=False, help="take the next image for one that cannot be read")

    add = parser.add_argument_group("network").add_argument
    add("--model-name", choices=tuple(models), default="vgg", help="network")
    add("--backbone-weights", default="imagenet", metavar="W", help="imagenet, none, or a file (VGG19 or VGG16)")
    add("--topk", type=number(float, 0, 1, above=True), default=0.3, metavar="X", help="vgg_trans: share of neighbours")
    add("--usenum", type=number(int, 1), default=18, metavar="N", help="vgg_trans: number of in-degree embeddings")
    cell = "pixels in a cell (the networks' stride)"
    add("--downsample-ratio", type=int, choices=(STRIDE,), default=STRIDE, help=cell)

    add = parser.add_argument_group("optimisation").add_argument
    add("--lr", type=number(float, 0, above=True), default=5e-6, metavar="X", help="Adam's learning rate")
    head_lr = "of the layers behind the features (0: that of the features)"
    add("--head-lr", type=number(float, 0), default=0.0, metavar="X", help=head_lr)
    schedules = ("constant", "cosine", "warmup-cosine")
    add("--lr-schedule", choices=schedules, default="constant", help="rate over the run; warm-up: its first 5 %%")
    add("--warm-up-epochs", type=number(int, 0), default=0, metavar="N", help="epochs over which the rate rises")
    add("--weight-decay", type=number(float, 0), default=1e-5, metavar="X", help="Adam's weight decay")
    add("--batch-size", type=number(int, 1, 10**6), default=1, metavar="N", help="crops in a batch, on each device")
    add("--accumulate", type=number(int, 1, 10**6), default=1, metavar="N", help="batches averaged for one step")
    add("--grad-clip", type=number(float, 0), default=0.0, metavar="X", help="largest gradient norm (0: any)")
    add("--ema", type=number(float, 0, 0.999999), default=0.0, metavar="X", help="decay of averaged weights (0: off)")
    passes = "passes over the training images"
    add("--epochs", "--max-epoch", type=number(int, 1), default=1200, metavar="N", help=passes)
    minutes = "as many epochs instead as end within this time and one validation more"
    add("--minutes", type=number(float, 0, 10**6, above=True), metavar="N", help=minutes)
    add("--seed", type=number(int, 0, 2**32 - 1), default=4073, metavar="N", help="of weights, order, crops, dropout")

    add = parser.add_argument_group("loss").add_argument
    add("--loss", choices=tuple(losses), default="gst", help="gst, or one that it is compared with")
    add("--sigma", type=_sigma, default=15.0, metavar="X", help="mse: width of its Gaussians, pixels, or adaptive")
    background = "gst, bl+: of the mass on the background in the loss"
    add("--background-weight", type=number(float, 0, 1e9), default=1.0, metavar="X", help=background)
    add("--count-weight", type=number(float, 0, 1e9), default=0.0, metavar="X", help="gst, bl, bl+: of |sum D - N|")
    add("--kernels", choices=("online", "h5"), default="online", help="from the augmented Gaussians, or stored ones")
    kernel_options[0](add)

    add = parser.add_argument_group("validation and files").add_argument
    add("--val-start", type=number(int, 0), default=600, metavar="N", help="first epoch that is validated")
    calibrate = "begin with and evaluate densities that sum up to the people of all training photographs"
    add("--calibrate", action=switch, default=False, help=calibrate)
    add("--val-every", "--val-epoch", type=number(int, 1), default=5, metavar="N", help="epochs between validations")
    add("--window", type=number(int, 32), default=512, metavar="N", help="side of evaluation windows, pixels")
    folder = "folder of the run (default: runs/<dataset>_<model-name>[_<loss>]; for own data, their folder's name)"
    add("--save-dir", type=Path, metavar="P", help=folder)
    add("--resume", default="auto", metavar="R", help="newest checkpoint (auto), a .tar or .pth file, or none")
    add("--overwrite", action="store_true", help="begin anew, and remove what a run before left in --save-dir")
    often = "least time between checkpoints; the end and Ctrl-C write one too"
    add("--checkpoint-minutes", type=number(float, 0, 10**6), default=5.0, metavar="N", help=often)
    add("--max-model-num", type=number(int, 1), default=1, metavar="N", help="checkpoints to keep")

    add = parser.add_argument_group("machine").add_argument
    add("--device", default="auto", metavar="D", help="GPU id, several (0,1), cpu; auto: the first GPU if any")
    add("--num-nodes", type=number(int, 1), default=1, metavar="N", help="machines that train together")
    add("--precision", choices=("32", "16-mixed", "bf16-mixed"), default="32", help="of the network; losses: float32")
    add("--tf32", action=switch, default=True, help="float32 products on GPUs with 10 bits of mantissa")
    add("--channels-last", action=switch, default=False, help="memory layout of images and weights")
    add("--compile", action=switch, default=False, help="compile the network with torch.compile")
    graphs = "replay training passes as CUDA graphs (default: on GPUs, uncompiled)"
    add("--graphs", action=switch, help=graphs)
    add("--deterministic", action=switch, default=False, help="only deterministic algorithms, on GPUs too")

    # In the released script ``--is-gray False`` means True; here False.
    add = parser.add_argument_group("of the released script, besides").add_argument
    released = {"type": _boolean, "nargs": "?", "const": True, "metavar": "B"}
    add("--save-all", default=False, help="also keep each best model, as best_model_<epoch>.pth", **released)
    add("--use-background", default=True, help="False: --background-ratio 0", **released)
    add("--is-gray", default=False, help="grey images are recognised either way", **released)
    add("--gs-path", default=_GAUSSIANS, metavar="NAME", help="folder of the Gaussians beside the images")

    arguments = parse_arguments(parser, argv, presets=("dataset", PRESETS))
    if report.get("dataset") not in (None, arguments.dataset):
        found = f"{arguments.data_dir / REPORT} says {stated}"
        parser.error(f"--dataset {arguments.dataset}: {found}; leave the option out, or prepare the data as that set")
    if arguments.gs_path != _GAUSSIANS:
        parser.error(
            f"--gs-path {arguments.gs_path}: fitted Gaussians are read from {_GAUSSIANS}/ beside the images (the released "
            "script ignores this option); rename the folder"
        )
    if not arguments.use_background:
        arguments.background_ratio = 0.0
    arguments.resume = arguments.resume or "auto"  # the released default is empty
    arguments.device = arguments.device.strip()
    for name in ("gs_path", "use_background", "is_gray"):  # only this project's own options are written down
        delattr(arguments, name)
    if arguments.crop_size % 16:
        parser.error(f"--crop-size {arguments.crop_size}: must be a multiple of 16, the networks' coarsest stride")
    if arguments.kernels == "h5" and arguments.loss != "gst":
        parser.error(f"--kernels h5: only gst's kernels are stored, not those of --loss {arguments.loss}; leave it out")
    kernel_options[1](parser, arguments)
    if arguments.num_workers is None:
        arguments.num_workers = default_loaders(processors // max(local, arguments.device.count(",") + 1))
    name = f"{data_name(arguments.dataset, arguments.data_dir)}_{arguments.model_name}"
    arguments.save_dir = arguments.save_dir or Path("runs") / (
        name + ("" if arguments.loss == "gst" else f"_{arguments.loss}")
    )
    return arguments


def default_loaders(processors: int) -> int:
    """Processes that load images beside a training that has so many processors: one stays with the training."""
    return min(8, max(processors - 1, min(2, processors), 1))


def _boolean(text: str) -> bool:
    """An argparse type for ``--option True`` and ``--option False``."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def _sigma(text: str) -> float | str:
    return text if text == "adaptive" else number(float, 0, 1e9, above=True)(text)
