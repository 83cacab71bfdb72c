"""What a training step leaves on the device until somebody looks: the host never waits for the device in a step.

The operations are counted: a step at the published batch of one crop is as fast as its launches.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.cli import one_line

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader


class NonFinite(ValueError):
    """A loss or gradient that is not finite, and the batches that it came from, by their place in the epoch."""

    def __init__(self, what: str, batches: range) -> None:
        super().__init__(what)
        self.what, self.batches = what, batches

    def places(self, batch_size: int) -> slice:
        """Where their crops stand in the epoch's order."""
        return slice(self.batches.start * batch_size, self.batches.stop * batch_size)


class Guard:
    """Keeps what is not finite away from the weights, and remembers the batch it came from.

    ``whole`` is 1 until the first loss or gradient that is not finite makes it NaN, and then stays so: 0 times such a number
    is NaN. ``broken`` is 0 and then 1; fused Adam takes it as ``found_inf``, leaving weights, moments and its step as they are.
    A loss that passed ``gate`` has only NaN gradients from then on, which float16's ``scaler`` keeps away too, and which the
    mean over processes spreads to all of them. So the state stays the one before that batch until somebody reads the flag.

    A scaler skips a step whose gradient is not finite and halves its scale: that is how it finds the scale, unless it goes on.
    """

    def __init__(self, device: torch.device, room: int, scaler: torch.amp.GradScaler | None = None) -> None:
        """``room``: batches from one call of ``found`` to the next, at most."""
        self.broken = torch.zeros((), device=device)
        self._whole = torch.ones((), device=device)
        # ``whole`` after the loss and after the gradient of each batch; with a scaler NaN or 0 for the gradient of each step.
        self._history = torch.ones(2, room, device=device)
        self._begin, self._scaler, self._skipped = 0, scaler, 0

    def gate(self, loss: Tensor, index: int) -> Tensor:
        """The loss of batch ``index``, with NaN gradients if it, or anything before it, was not finite."""
        self._whole.add_(loss.detach(), alpha=0)
        self._history[0, index - self._begin].copy_(self._whole)
        return loss * self._whole

    def watch(self, norm: Tensor, index: int) -> None:
        """Look at the norm of the gradient of the step that batch ``index`` completes."""
        if self._scaler is None:
            self._whole.add_(norm, alpha=0)
        seen = self._whole if self._scaler is None else norm * 0
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
            if self._scaler is None and math.isnan(gradients[index]):
                return NonFinite("gradient", range(last // accumulate * accumulate, last + 1))
            if gradients[index] != 1:  # the end of a step
                self._skipped = self._skipped + 1 if math.isnan(gradients[index]) else 0
                step = range(last // accumulate * accumulate, last + 1)
        if self._scaler is not None and self._skipped and self._is_lost(self._scaler.get_scale()):
            return NonFinite("gradient", step)
        self._begin = end
        self._history.fill_(1)
        return None

    def _is_lost(self, scale: float) -> bool:
        """Whether no scale helps: it has fallen below 1, and every step since was skipped."""
        before = scale / self._scaler.get_backoff_factor() ** self._skipped  # of the steps skipped in a row
        return scale < 1 and (before >= 1 or self._skipped > 16)  # 16: from 2^16, with which a scaler begins, to 1


class Stopped(Exception):
    """All processes stop, since one could not go on: its ``error`` there, None on the others."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error


def stop_together(fabric: Fabric, unread: Exception | None, broken: NonFinite | None) -> None:
    """Raise ``Stopped`` on all processes if one could not read a batch or met what is not finite: the cause on that one.

    Where one has read nothing, or met a loss that is not finite, the gradients of the others are not finite either.
    """
    rank, processes = fabric.global_rank, fabric.world_size
    weight = 3 if unread else 0 if broken is None else 2 if broken.what == "loss" else 1
    worst = int(
        fabric.all_reduce(torch.tensor(float(weight * processes + rank), device=fabric.device), reduce_op="max")
    )
    if worst >= processes:
        raise Stopped(unread or broken if worst % processes == rank else None)


@contextlib.contextmanager
def agreed(fabric: Fabric) -> Iterator[None]:
    """A block that every process runs for itself, without waiting for the others in it: if it fails on one, it does on all.

    All raise with the line of the one that failed, instead of waiting for it until a connection breaks.
    """
    error = None
    try:
        yield
    except Exception as failure:
        error = failure
    processes = fabric.world_size
    code = torch.tensor(float(fabric.global_rank if error else -1), device=fabric.device)
    first = int(fabric.all_reduce(code, reduce_op="max"))
    if first >= 0:
        line = fabric.broadcast(one_line(error) if error else "", src=first) if processes > 1 else ""
        raise error or ValueError(line)


def gradient_norm(parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
    """The norm of all gradients, before they are clipped to ``clip`` (0: as they are): a scalar on their device."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    # nn.utils.get_total_norm, without moving each parameter's norm to the device where it is.
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters])))
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


class Batches:
    """The batches of an epoch: (index, batch, crops of its step on this process, whether it is the last of its step).

    From one on that cannot be read they are None, and ``error`` says why: the other processes are waiting in the step, and
    learn of it when all look. A process alone raises it.
    """

    def __init__(self, fabric: Fabric, loader: DataLoader, accumulate: int) -> None:
        self._loader, self._accumulate, self._is_alone = loader, accumulate, fabric.world_size == 1
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[tuple[int, Any, int, bool]]:
        batches, size, all_crops = iter(self._loader), self._loader.batch_size, len(self._loader.sampler)
        for index in range(len(self._loader)):
            batch = None
            try:
                batch = next(batches) if self.error is None else None
            except Exception as error:
                if self._is_alone:
                    raise
                self.error = error
            first = index // self._accumulate * self._accumulate
            end = min(first + self._accumulate, len(self._loader))
            yield index, batch, min(end * size, all_crops) - first * size, index + 1 == end


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
    """Sums over the batches of an epoch; what batches give stays on the device until ``read``."""

    def __init__(self) -> None:
        self.batches = self.images = self.steps = self.skipped = 0
        self.loss = self.error = self.squared_error = self.norm = 0.0
        self._pending: list[tuple[Tensor, list[float]]] = []
        self._norms: list[Tensor] = []

    def add(self, loss: Tensor, counts: Tensor, truths: list[float], skipped: int) -> None:
        """The loss of a batch, the predicted counts [B] and the annotated ones of its crops, and images skipped for it."""
        self._pending += [(loss.detach().reshape(1), []), (counts.detach(), truths)]
        self.skipped += skipped

    def add_norm(self, norm: Tensor) -> None:
        """The norm of the gradient of one step."""
        self._norms.append(norm.reshape(1))

    def read(self) -> dict[str, str]:
        """Loss and MAE so far, for a progress bar. Waits for the device."""
        parts = [part for part, _ in self._pending] + self._norms
        values = iter(torch.cat([part.float() for part in parts]).tolist() if parts else [])
        for part, truths in self._pending:
            if not truths:
                self.loss, self.batches = self.loss + next(values), self.batches + 1
                continue
            for truth in truths:
                error = next(values) - truth
                self.error, self.squared_error = self.error + abs(error), self.squared_error + error * error
            self.images += len(truths)
        for norm in values:
            if math.isfinite(norm):  # others are of steps that float16's scaler skipped
                self.norm, self.steps = self.norm + norm, self.steps + 1
        self._pending, self._norms = [], []
        return {"loss": f"{self.loss / self.batches:.2f}", "MAE": f"{self.error / self.images:.2f}"}

    def metrics(self, fabric: Fabric, watch: Stopwatch) -> dict[str, Any]:
        """Means over the epoch's crops on all processes, and the seconds of ``watch``, which are this process's."""
        own = [
            self.loss,
            self.error,
            self.squared_error,
            self.norm,
            self.batches,
            self.images,
            self.steps,
            self.skipped,
        ]
        sums = fabric.all_reduce(torch.tensor(own, dtype=torch.float64, device=fabric.device), reduce_op="sum").tolist()
        loss, absolute, squared, norms, batches, images, steps, skipped = sums
        times = watch.seconds()
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
