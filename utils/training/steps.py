"""What surrounds the steps of a training run and never makes the host wait for the device in one.

The operations are counted: a step at the published batch of one crop is as fast as its launches.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.cli import ProgressBar
from utils.pixels import normalise
from utils.training.processes import NotFinite, agreed
from utils.training.schedule import TimeBudget

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader

CHECK_EVERY = 32  # batches from one look at losses and gradients to the next: the device is waited for
SHOW_SECONDS = 0.5  # from one look at loss and MAE to the next
SMALLEST_SCALE = 2.0**-16  # of float16's gradients, from 2^16 on: it is halved after each that is not finite


class Steps:
    """The batches of a run's steps, with all that goes on beside forward pass, loss and gradient.

    Each batch of ``batches`` is answered by ``share``, with its loss, and at the end of a step by ``gradient_norm``. Whether
    all is finite, the progress bar and the budget of time are looked at every ``CHECK_EVERY`` batches, and at the end of an
    epoch: before anything of it is written.
    """

    def __init__(self, fabric: Fabric, arguments: argparse.Namespace, budget: TimeBudget | None = None) -> None:
        self.fabric, self.arguments, self.budget = fabric, arguments, budget
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)  # of float16's gradients
        self.done = 0.0  # epochs
        self._bar: ProgressBar | None = None

    def batches(self, loader: DataLoader, epoch: int) -> Iterator[tuple[Tensor, Any, int, bool]]:
        """(images, normalised; their batch; crops of its step on all processes; whether it is the last of the step).

        From a batch on that this process cannot read they are None, with images of zeros: the other processes are waiting in
        the step, and all stop together when they look next. A process alone raises the error at once.
        """
        fabric, arguments, processes = self.fabric, self.arguments, self.fabric.world_size
        all_crops, size, accumulate = len(loader.sampler), loader.batch_size, arguments.accumulate
        torch.backends.cudnn.benchmark = not arguments.deterministic  # all crops are of one size
        self._sums, self._watch, shown = EpochSums(), Stopwatch(fabric.device), time.monotonic()
        if self._bar is None:
            total, done = (epochs * all_crops * processes for epochs in (arguments.epochs, epoch))
            self._bar = ProgressBar(
                total=total, initial=done, desc="train", unit="img", disable=not fabric.is_global_zero
            )
        unread = torch.zeros(size, 3, arguments.crop_size, arguments.crop_size, device=fabric.device)
        source, error = iter(loader), None
        for index in range(len(loader)):
            try:
                batch = next(source) if error is None else None
            except Exception as failure:
                if processes == 1:
                    raise
                batch, error = None, failure
            images = normalise(batch.images if batch else unread)
            if arguments.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            first = index // accumulate * accumulate
            end = min(first + accumulate, len(loader))
            crops = min(end * size, all_crops) - first * size
            self._share, self.done = len(images) / crops, epoch + index / len(loader)
            self._watch.lap("data")
            yield images, batch, crops * processes, index + 1 == end
            self._watch.lap("backward")
            if batch:
                self._sums.add(self._loss, self._counts, batch)
                for reason in batch.skipped:
                    tqdm.write(f"skipped: {reason}", file=sys.stderr)
            self._bar.update(len(images) * processes)
            done = index + 1
            is_due = done % CHECK_EVERY == 0 or done == len(loader)
            if is_due or time.monotonic() - shown > SHOW_SECONDS:
                self._bar.set_postfix(self._sums.read(), refresh=False)
                shown = time.monotonic()
            if is_due:
                with agreed(fabric):
                    if error:
                        raise error
                    self._sums.check(epoch, accumulate, self.scaler)
                if self.budget:
                    elapsed = fabric.broadcast(self.budget.elapsed())
                    arguments.epochs = self.budget.epochs(epoch + done / len(loader), elapsed)
                    self._bar.total = arguments.epochs * all_crops * processes
            self._watch.lap("other")

    def lap(self, part: str) -> None:
        """Book the time since the lap before to a part of the step."""
        self._watch.lap(part)

    def share(self, loss: Tensor, density: Tensor) -> Tensor:
        """What is to be differentiated for the loss of a batch: its share of the step's."""
        self._loss, self._counts = loss.detach(), density.detach().float().sum((1, 2, 3))
        self._watch.lap("loss")
        return loss if self._share == 1 else loss * self._share

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the norm of the gradient of the step that ends here, and clip it as the options say."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer.optimizer)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._sums.add_norm(gradient_norm(parameters, self.arguments.grad_clip))

    def metrics(self) -> dict[str, Any]:
        """The epoch's means of loss, MAE, MSE and gradient norm over all processes, and where this one's time went."""
        return self._sums.metrics(self.fabric, self._watch.seconds())

    def close(self) -> None:
        """End the line of the progress bar."""
        if self._bar is not None:
            self._bar.close()


def gradient_norm(parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
    """The norm of all gradients, before they are clipped to ``clip`` (0: as they are): a scalar on their device."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    # nn.utils.get_total_norm, without moving each parameter's norm to the device where it is.
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters])))
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


class WeightAverage:
    """An exponential moving average of a network's weights, from those after the first step on, in ``module``.

    ``torch.optim.swa_utils.AveragedModel`` sends its counter to the device, and waits for it, in every step; files have its
    names.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self._decay, self._steps = decay, 0

    def update(self, network: nn.Module) -> None:
        """average = decay average + (1 - decay) weights."""
        values = [value.detach() for value in network.parameters()]
        torch._foreach_lerp_(list(self.module.parameters()), values, 1 - self._decay if self._steps else 1.0)
        self._steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self._steps), **state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._steps = int(state["n_averaged"])
        self.module.load_state_dict(
            {name.removeprefix("module."): state[name] for name in state if name != "n_averaged"}
        )


class EpochSums:
    """The figures of an epoch's batches; what batches give stays on the device until ``read``."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.errors: list[float] = []
        self.norms: list[float] = []
        self.names: list[list[str]] = []  # of the images of each batch
        self.skipped = 0
        self._unread: tuple[list[Tensor], ...] = ([], [], [])  # losses, counts, norms
        self._truths: list[float] = []

    def add(self, loss: Tensor, counts: Tensor, batch: Any) -> None:
        """The loss of a batch and the predicted counts [B] of its crops."""
        self._unread[0].append(loss.reshape(1))
        self._unread[1].append(counts)
        self._truths += batch.truths
        self.names.append(batch.names)
        self.skipped += len(batch.skipped)

    def add_norm(self, norm: Tensor) -> None:
        """The norm of the gradient of one step."""
        self._unread[2].append(norm.reshape(1))

    def read(self) -> dict[str, str]:
        """Loss and MAE so far, for a progress bar. Waits for the device."""
        parts = [part for parts in self._unread for part in parts]
        values = torch.cat(parts).tolist() if parts else []
        batches, images = len(self._unread[0]), len(self._truths)
        self.losses += values[:batches]
        self.errors += [count - truth for count, truth in zip(values[batches:], self._truths)]
        self.norms += values[batches + images :]
        self._unread, self._truths = ([], [], []), []
        absolute = sum(map(abs, self.errors)) / max(len(self.errors), 1)
        return {"loss": f"{sum(self.losses) / max(len(self.losses), 1):.2f}", "MAE": f"{absolute:.2f}"}

    def check(self, epoch: int, accumulate: int, scaler: torch.amp.GradScaler | None) -> None:
        """Raise ``NotFinite`` for the first loss or gradient of what was read that is not finite.

        A scaler leaves such a gradient out and halves its scale, which is how it finds one: unless none is small enough.
        """
        loss = next((index for index, loss in enumerate(self.losses) if not math.isfinite(loss)), math.inf)
        steps = [step for step, norm in enumerate(self.norms) if not math.isfinite(norm)]
        if scaler is not None:
            steps = steps[-1:] if scaler.get_scale() < SMALLEST_SCALE else []
        end = min((steps[0] + 1) * accumulate, len(self.names)) if steps else math.inf
        if loss < end:
            raise NotFinite("loss", epoch, loss, self.names[loss])
        if steps:
            names = [name for names in self.names[steps[0] * accumulate : end] for name in names]
            raise NotFinite("gradient", epoch, end - 1, names)

    def metrics(self, fabric: Fabric, times: dict[str, float]) -> dict[str, Any]:
        """Means over the epoch's crops on all processes, and the seconds of each part of its steps, which are this process's."""
        norms = [norm for norm in self.norms if math.isfinite(norm)]  # float16's scaler left the others out
        sums = [sum(self.losses), sum(map(abs, self.errors)), sum(e * e for e in self.errors), sum(norms)]
        numbers = [len(self.losses), len(self.errors), len(norms), self.skipped]
        own = torch.tensor(sums + numbers, dtype=torch.float64, device=fabric.device)
        loss, absolute, squared, norm, batches, images, steps, skipped = fabric.all_reduce(
            own, reduce_op="sum"
        ).tolist()
        return {
            "loss": loss / batches,
            "mae": absolute / images,
            "mse": math.sqrt(squared / images),
            "gradient_norm": norm / max(steps, 1),  # the scaler may have left out all
            "skipped": int(skipped),
            "seconds": sum(times.values()),
            "images_per_second": images / sum(times.values()),
            "time": times,
        }


class Stopwatch:
    """Seconds by part: each ``lap(part)`` books the time since the lap before.

    On a GPU the laps are events of its stream, which are read in ``seconds`` only: a lap does not wait for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.laps: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap("")

    def lap(self, part: str) -> None:
        if self.on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self.laps.append((part, now))

    def seconds(self) -> dict[str, float]:
        """Sum of each part so far."""
        if self.on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = defaultdict(float)
        for (_, before), (part, now) in zip(self.laps, self.laps[1:]):
            totals[part] += before.elapsed_time(now) / 1000 if self.on_gpu else now - before
        return dict(totals)
