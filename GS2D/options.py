"""The transport kernel's parameters on the command line: the same for training and for stored kernels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from GS2D.kernel import LARGEST_PARAMETER
from utils.config import number
from utils.pixels import STRIDE


def add_kernel_options(add: Callable[..., Any]) -> None:
    """Add the parameters of ``GS2D.kernel.transport_kernel`` to a parser by its ``add_argument``."""
    add(
        "--cut-off",
        type=number(float, 0, LARGEST_PARAMETER),
        default=3.0,
        help="kernel: where the background takes over, standard deviations",
    )
    add(
        "--background-ratio",
        type=number(float, 0, LARGEST_PARAMETER),
        default=0.015,
        help="kernel: weight of the background",
    )
    add(
        "--scale-ratio",
        type=number(float, 0, LARGEST_PARAMETER, above=True),
        default=1.0,
        help="kernel: factor on the fitted scales",
    )
    add(
        "--post-min",
        type=number(float, 0, LARGEST_PARAMETER, above=True),
        default=1.0,
        help="kernel: scales of at least 8 / this, pixels",
    )
    add(
        "--post-max",
        type=number(float, 0, LARGEST_PARAMETER, above=True),
        default=20.0,
        help="kernel: scales of at most this, pixels",
    )


def check_kernel_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a usage error where the parameters contradict each other."""
    smallest = STRIDE / arguments.post_min
    if arguments.post_max < smallest:
        parser.error(
            f"--post-max {arguments.post_max:g}: below the smallest scale, {smallest:g}; raise it or --post-min"
        )


def kernel_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The chosen parameters as keyword arguments of ``transport_kernel``."""
    names = ("cut_off", "background_ratio", "scale_ratio", "post_min", "post_max")
    return {"stride": STRIDE, **{name: getattr(arguments, name) for name in names}}


KERNEL_OPTIONS = add_kernel_options, check_kernel_options
