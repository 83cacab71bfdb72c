"""Options of the released training script that have another name here, or none: shell scripts written for it run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

GAUSSIANS_FOLDER = "gs_params"


def boolean(text: str) -> bool:
    """An argparse type for ``--option True`` and ``--option False``."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def add_released_options(add: Callable[..., Any]) -> None:
    """Add them to a parser by its ``add_argument``. In the released script ``--is-gray False`` means True; here False."""
    switch = {"type": boolean, "nargs": "?", "const": True, "metavar": "B"}
    add("--save-all", default=False, help="also keep each best model, as best_model_<epoch>.pth", **switch)
    add("--use-background", default=True, help="False: --background-ratio 0", **switch)
    add("--is-gray", default=False, help="grey images are recognised either way", **switch)
    add("--gs-path", default=GAUSSIANS_FOLDER, metavar="NAME", help="folder of the Gaussians beside the images")


def apply_released_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Turn them into the options of this project, which alone are written down.

    An empty ``--resume`` is the released default, and its ``--device`` may have blanks around the number.
    """
    if arguments.gs_path != GAUSSIANS_FOLDER:
        parser.error(
            f"--gs-path {arguments.gs_path}: fitted Gaussians are read from {GAUSSIANS_FOLDER}/ beside the images "
            "(the released script ignores this option); rename the folder"
        )
    if not arguments.use_background:
        arguments.background_ratio = 0.0
    arguments.resume = arguments.resume or "auto"
    arguments.device = arguments.device.strip()
    for name in ("gs_path", "use_background", "is_gray"):
        delattr(arguments, name)
