"""What ``--device`` means for Lightning Fabric, how a run starts, and what is said where its memory runs out."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_devices(device: str) -> dict[str, object]:
    """Keyword arguments of ``lightning_fabric.Fabric`` for ``--device``: a GPU id, several (``0,1``), ``cpu`` or ``auto``.

    Raises ``ValueError`` for ids that do not exist here.
    """
    if device == "auto":
        device = "0" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        # torchrun starts the processes itself and says how many there are on this machine.
        return {"accelerator": "cpu", "devices": int(os.environ.get("LOCAL_WORLD_SIZE", 1))}
    try:
        ids = [int(part) for part in device.split(",")]
    except ValueError:
        raise ValueError(f"--device {device}: neither cpu nor GPU ids such as 0 or 0,1") from None
    available = torch.cuda.device_count()
    missing = [i for i in ids if not 0 <= i < available]
    if missing:
        raise ValueError(f"--device {device}: this machine has {available} GPUs, no GPU {missing[0]}; try --device cpu")
    return {"accelerator": "cuda", "devices": ids}


def start_fabric(arguments: argparse.Namespace) -> Fabric:
    """The processes of a training run, their devices, precision and seed, as its options say.

    Raises ``ValueError`` for what this machine or the way the job was started does not allow.
    """
    from lightning_fabric import Fabric, seed_everything  # here: fitting asks for devices only, and it takes seconds

    devices = fabric_devices(arguments.device)
    if arguments.precision == "16-mixed" and devices["accelerator"] == "cpu":
        raise ValueError("--precision 16-mixed: needs a GPU; take bf16-mixed or 32 on the CPU")
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order
        torch.use_deterministic_algorithms(True)
    try:
        fabric = Fabric(**devices, num_nodes=arguments.num_nodes, precision=arguments.precision)
    except RuntimeError as error:  # how the job was started: SLURM's tasks are not given by node, for one
        raise ValueError(str(error)) from None
    torch.set_float32_matmul_precision("high" if arguments.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = arguments.tf32
    fabric.launch()
    seed_everything(arguments.seed, verbose=False)
    return fabric


@contextlib.contextmanager
def network_errors(remedy: str) -> Iterator[None]:
    """Turn the many ways in which memory runs out into one ``ValueError`` that ends in ``remedy``, and a failed --compile."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if "shared memory" in text or "Bus error" in text or text == "[Errno 28] No space left on device":
            what = "loading processes hand batches over in /dev/shm, which is full"
            raise ValueError(
                f"{what}; enlarge it (docker run --shm-size), or lower --num-workers (0 needs none)"
            ) from None
        # The latter where it was handing a batch over, before the loader has noticed.
        has_died = "DataLoader worker" in text and ("killed" in text or "exited unexpectedly" in text)
        if has_died or isinstance(error, (EOFError, ConnectionError)):
            raise ValueError(f"a process that loads images was killed (out of memory?); {remedy}") from None
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise ValueError(f"out of memory; {remedy}") from None
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = text.strip().partition("\n")[0]
            raise ValueError(f"--compile: {reason}; leave it out, or install a C++ compiler") from None
        raise


def environment() -> dict[str, Any]:
    """Versions of Python, of every installed package and of the GPU's software."""
    packages = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "packages": dict(sorted(packages.items(), key=lambda item: str(item[0]).lower())),
    }
