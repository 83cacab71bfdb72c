"""The transport kernel's parameters on the command line: the same for training and for stored kernels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from GS2D.kernel import LARGEST_PARAMETER, Parameters
from utils.config import number
from utils.pixels import STRIDE


def add_kernel_options(add: Callable[..., Any]) -> None:
    """Add the parameters of ``GS2D.kernel.transport_kernel`` to a parser by its ``add_argument``."""
    for name, above, default, text in (
        ("--cut-off", False, 3.0, "where the background begins, standard deviations"),
        ("--background-ratio", False, 0.015, "weight of the background"),
        ("--scale-ratio", True, 1.0, "factor on the fitted scales"),
        ("--post-min", True, 1.0, "scales of at least 8 / this, pixels"),
        ("--post-max", True, 20.0, "scales of at most this, pixels"),
    ):
        kind = number(float, 0, LARGEST_PARAMETER, above=above)
        add(name, type=kind, default=default, metavar="X", help=f"kernel: {text}")
    add("--round-shapes", action="store_true", help="kernel: round Gaussians of the same area")


def check_kernel_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a usage error where the parameters contradict each other."""
    smallest = STRIDE / arguments.post_min
    if arguments.post_max < smallest:
        parser.error(
            f"--post-max {arguments.post_max:g}: below the smallest scale, {smallest:g}; raise it or --post-min"
        )


def kernel_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The chosen parameters as keyword arguments of ``transport_kernel``."""
    return {"stride": STRIDE, **{name: getattr(arguments, name) for name in Parameters._fields if name != "stride"}}


KERNEL_OPTIONS = add_kernel_options, check_kernel_options
