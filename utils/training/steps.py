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
from utils.training.processes import NonFinite, stop_together
from utils.training.schedule import TimeBudget

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader

CHECK_EVERY = 32  # batches from one look at the guard to the next: the device is waited for
SHOW_SECONDS = 0.5  # from one look at loss and MAE to the next


class Steps:
    """The batches of a run's steps, with all that goes on beside forward pass, loss and gradient.

    Each batch of ``batches`` is answered by ``gate``, with its loss, and at the end of a step by ``gradient_norm``. Whether all
    is finite, the progress bar and the budget of time are looked at every ``CHECK_EVERY`` batches.
    """

    def __init__(
        self, fabric: Fabric, arguments: argparse.Namespace, guard: Guard, budget: TimeBudget | None = None
    ) -> None:
        self.fabric, self.arguments, self.guard, self.budget = fabric, arguments, guard, budget
        self.done = 0.0  # epochs
        self._bar: ProgressBar | None = None

    def batches(self, loader: DataLoader, epoch: int) -> Iterator[tuple[Tensor, Any, int, bool]]:
        """(images, normalised; their batch; crops of its step on all processes; whether it is the last of the step).

        From a batch on that this process cannot read they are None, with images of zeros: the other processes are waiting in
        the step, and all stop together (``Stopped``) when they look next. A process alone raises the error at once.
        """
        fabric, arguments, processes = self.fabric, self.arguments, self.fabric.world_size
        all_crops, size, accumulate = len(loader.sampler), loader.batch_size, arguments.accumulate
        torch.backends.cudnn.benchmark = not arguments.deterministic  # all crops are of one size
        self._sums, self._watch, shown = EpochSums(), Stopwatch(fabric.device), time.monotonic()
        self.guard.start_epoch()
        if self._bar is None:
            total, done = (epochs * all_crops * processes for epochs in (arguments.epochs, epoch))
            self._bar = ProgressBar(
                total=total, initial=done, desc="train", unit="img", disable=not fabric.is_global_zero
            )
        unread = torch.zeros(size, 3, arguments.crop_size, arguments.crop_size, device=fabric.device)
        source, error = iter(loader), None
        for self._index in range(len(loader)):
            try:
                batch = next(source) if error is None else None
            except Exception as failure:
                if processes == 1:
                    raise
                batch, error = None, failure
            images = normalise(batch.images if batch else unread)
            if arguments.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            first = self._index // accumulate * accumulate
            end = min(first + accumulate, len(loader))
            crops = min(end * size, all_crops) - first * size
            self._share, self.done = len(images) / crops, epoch + self._index / len(loader)
            self._watch.lap("data")
            yield images, batch, crops * processes, self._index + 1 == end
            self._watch.lap("backward")
            if batch:
                self._sums.add(self._loss, self._counts, batch.truths, len(batch.skipped))
                for reason in batch.skipped:
                    tqdm.write(f"skipped: {reason}", file=sys.stderr)
            if time.monotonic() - shown > SHOW_SECONDS:
                self._bar.set_postfix(self._sums.read(), refresh=False)
                shown = time.monotonic()
            self._bar.update(len(images) * processes)
            done = self._index + 1
            if done % CHECK_EVERY == 0 or done == len(loader):
                stop_together(fabric, error, self.guard.found(done, accumulate))
                if self.budget:
                    elapsed = fabric.broadcast(self.budget.elapsed())
                    arguments.epochs = self.budget.epochs(epoch + done / len(loader), elapsed)
                    self._bar.total = arguments.epochs * all_crops * processes
            self._watch.lap("other")
        self._bar.set_postfix(self._sums.read(), refresh=False)

    def lap(self, part: str) -> None:
        """Book the time since the lap before to a part of the step."""
        self._watch.lap(part)

    def gate(self, loss: Tensor, density: Tensor) -> Tensor:
        """What is to be differentiated for the loss of a batch: its share of the step's, with NaN gradients if it is not finite."""
        gated = self.guard.gate(loss, self._index)
        self._loss, self._counts = loss.detach(), density.detach().float().sum((1, 2, 3))
        self._watch.lap("loss")
        return gated if self._share == 1 else gated * self._share

    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradient of the step that ends here, and clip its norm as the options say."""
        if self.guard.scaler is not None:
            self.guard.scaler.unscale_(optimizer.optimizer)
        norm = gradient_norm([p for group in optimizer.param_groups for p in group["params"]], self.arguments.grad_clip)
        self.guard.watch(norm, self._index)
        self._sums.add_norm(norm)

    def metrics(self) -> dict[str, Any]:
        """The epoch's means of loss, MAE, MSE and gradient norm over all processes, and where this one's time went."""
        return self._sums.metrics(self.fabric, self._watch.seconds())

    def close(self) -> None:
        """End the line of the progress bar."""
        if self._bar is not None:
            self._bar.close()


class Guard:
    """Keeps what is not finite away from the weights, and remembers the batch it came from.

    ``whole`` is 1 until the first loss or gradient that is not finite makes it NaN, and then stays so: 0 times such a number
    is NaN. ``broken`` is 0 and then 1; fused Adam takes it as ``found_inf``, leaving weights, moments and its step as they are.
    A loss that passed ``gate`` has only NaN gradients from then on, which float16's ``scaler`` keeps away too, and which the
    mean over processes spreads to all of them. So the state stays the one before that batch until somebody reads the flag.

    A scaler skips a step whose gradient is not finite and halves its scale: that is how it finds the scale, unless it goes on.
    """

    def __init__(self, device: torch.device, scaler: torch.amp.GradScaler | None = None) -> None:
        self.broken = torch.zeros((), device=device)
        self._whole = torch.ones((), device=device)
        # ``whole`` after the loss and after the gradient of each batch; with a scaler NaN or 0 for the gradient of each step.
        self._history = torch.ones(2, CHECK_EVERY, device=device)
        self._begin, self.scaler, self._skipped = 0, scaler, 0

    def gate(self, loss: Tensor, index: int) -> Tensor:
        """The loss of batch ``index``, with NaN gradients if it, or anything before it, was not finite."""
        self._whole.add_(loss.detach(), alpha=0)
        self._history[0, index - self._begin].copy_(self._whole)
        return loss * self._whole

    def watch(self, norm: Tensor, index: int) -> None:
        """Look at the norm of the gradient of the step that batch ``index`` completes."""
        if self.scaler is None:
            self._whole.add_(norm, alpha=0)
        seen = self._whole if self.scaler is None else norm * 0
        self._history[1, index - self._begin].copy_(seen)
        torch.ne(self._whole, self._whole, out=self.broken)

    def start_epoch(self) -> None:
        """Batches are counted from 0 again."""
        self._begin = 0

    def found(self, end: int, accumulate: int) -> NonFinite | None:
        """What was not finite first on this process among the batches before ``end``, if anything was. Waits for the device.

        Looks at the batches that were not looked at before; a gradient is of the ``accumulate`` batches of its step.
        """
        losses, gradients = self._history.tolist()
        for index in range(end - self._begin):
            last = index + self._begin
            if math.isnan(losses[index]):
                return NonFinite("loss", range(last, last + 1))
            if self.scaler is None and math.isnan(gradients[index]):
                return NonFinite("gradient", range(last // accumulate * accumulate, last + 1))
            if gradients[index] != 1:  # the end of a step
                self._skipped = self._skipped + 1 if math.isnan(gradients[index]) else 0
                step = range(last // accumulate * accumulate, last + 1)
        if self.scaler is not None and self._skipped and self._is_lost(self.scaler.get_scale()):
            return NonFinite("gradient", step)
        self._begin = end
        self._history.fill_(1)
        return None

    def _is_lost(self, scale: float) -> bool:
        """Whether no scale helps: it has fallen below 1, and every step since was skipped."""
        before = scale / self.scaler.get_backoff_factor() ** self._skipped  # of the steps skipped in a row
        return scale < 1 and (before >= 1 or self._skipped > 16)  # 16: from 2^16, with which a scaler begins, to 1


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

    It stands still once ``guard`` is broken. ``torch.optim.swa_utils.AveragedModel`` sends its counter to the device, and
    waits for it, in every step; files have its names.
    """

    def __init__(self, network: nn.Module, decay: float, guard: Guard) -> None:
        self.module = copy.deepcopy(network).requires_grad_(False)
        self._decay, self._guard, self._steps = decay, guard, 0

    def update(self, network: nn.Module) -> None:
        """average = decay average + (1 - decay) weights."""
        weight = (1 - self._decay if self._steps else 1) * (1 - self._guard.broken)
        averages, values = list(self.module.parameters()), [value.detach() for value in network.parameters()]
        torch._foreach_lerp_(averages, values, [weight.to(average.dtype) for average in averages])
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
        self.skipped = 0
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._truths: list[float] = []

    def add(self, loss: Tensor, counts: Tensor, truths: Sequence[float], skipped: int) -> None:
        """The loss of a batch, the predicted counts [B] and the annotated ones of its crops, and images skipped for it."""
        self._losses.append(loss.reshape(1))
        self._counts.append(counts)
        self._truths += truths
        self.skipped += skipped

    def add_norm(self, norm: Tensor) -> None:
        """The norm of the gradient of one step."""
        self._norms.append(norm.reshape(1))

    def read(self) -> dict[str, str]:
        """Loss and MAE so far, for a progress bar. Waits for the device."""
        parts = (*self._losses, *self._counts, *self._norms)
        values = torch.cat([part.float() for part in parts]).tolist() if parts else []
        losses, images = len(self._losses), len(self._truths)
        self.losses += values[:losses]
        self.errors += [count - truth for count, truth in zip(values[losses:], self._truths)]
        # Norms that are not finite are of steps that float16's scaler skipped.
        self.norms += [norm for norm in values[losses + images :] if math.isfinite(norm)]
        self._losses, self._counts, self._norms, self._truths = [], [], [], []
        absolute = sum(map(abs, self.errors)) / max(len(self.errors), 1)
        return {"loss": f"{sum(self.losses) / max(len(self.losses), 1):.2f}", "MAE": f"{absolute:.2f}"}

    def metrics(self, fabric: Fabric, times: dict[str, float]) -> dict[str, Any]:
        """Means over the epoch's crops on all processes, and the seconds of each part of its steps, which are this process's."""
        sums = [sum(self.losses), sum(map(abs, self.errors)), sum(e * e for e in self.errors), sum(self.norms)]
        numbers = [len(self.losses), len(self.errors), len(self.norms), self.skipped]
        own = torch.tensor(sums + numbers, dtype=torch.float64, device=fabric.device)
        loss, absolute, squared, norms, batches, images, steps, skipped = fabric.all_reduce(
            own, reduce_op="sum"
        ).tolist()
        return {
            "loss": loss / batches,
            "mae": absolute / images,
            "mse": math.sqrt(squared / images),
            "gradient_norm": norms / max(steps, 1),  # float16's scaler may have skipped all
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
