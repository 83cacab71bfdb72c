"""What a training step leaves on the device until somebody looks: the host never waits for the device in a step.

The operations are counted: a step at the published batch of one crop is as fast as its launches.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Guard:
    """Keeps what is not finite away from the weights, and remembers the batch it came from.

    ``whole`` is 1 until the first loss or gradient that is not finite makes it NaN, and then stays so: 0 times such a number
    is NaN. ``broken`` is 0 and then 1; fused Adam takes it as ``found_inf``, leaving weights, moments and its step as they are.
    A loss that passed ``gate`` has only NaN gradients from then on, which float16's scaler keeps away too, and which the
    mean over processes spreads to all of them. So the state stays the one before that batch until somebody reads the flag.
    """

    def __init__(self, device: torch.device, room: int) -> None:
        """``room``: batches from one call of ``found`` to the next, at most."""
        self.broken = torch.zeros((), device=device)
        self._whole = torch.ones((), device=device)
        self._history = torch.ones(
            2, room, device=device
        )  # ``whole`` after the loss and after the gradient of each batch
        self._begin = 0

    def gate(self, loss: Tensor, index: int) -> Tensor:
        """The loss of batch ``index``, with NaN gradients if it, or anything before it, was not finite."""
        self._note(0, loss.detach(), index)
        return loss * self._whole

    def watch(self, norm: Tensor | None, index: int) -> None:
        """Look at the norm of the gradient of the step that batch ``index`` completes; None: float16's scaler does that."""
        if norm is not None:
            self._note(1, norm, index)
        torch.ne(self._whole, self._whole, out=self.broken)

    def _note(self, kind: int, value: Tensor, index: int) -> None:
        self._whole.add_(value, alpha=0)
        self._history[kind, index - self._begin].copy_(self._whole)

    def start_epoch(self) -> None:
        """Batches are counted from 0 again."""
        self._begin = 0

    def found(self, end: int) -> tuple[str, int] | None:
        """("loss" or "gradient", batch) of what was not finite first on this process, if anything was. Waits for the device.

        Looks at the batches before ``end`` that were not looked at before.
        """
        history = self._history.tolist()
        for index in range(end - self._begin):
            for kind, values in zip(("loss", "gradient"), history):
                if math.isnan(values[index]):
                    return kind, index + self._begin
        self._begin = end
        self._history.fill_(1)
        return None


def gradient_norm(parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
    """The norm of all gradients, before they are clipped to ``clip`` (0: as they are): a scalar on their device."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    # nn.utils.get_total_norm, without moving each parameter's norm to the device where it is.
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters])))
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def guarded_average(decay: float, guard: Guard) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """``multi_avg_fn`` of an exponential moving average that stands still once ``guard`` is broken."""

    def update(averages: list[Tensor], values: list[Tensor], _: Tensor | int) -> None:
        weight = (1 - decay) * (1 - guard.broken)
        torch._foreach_lerp_(averages, values, [weight.to(average.dtype) for average in averages])

    return update


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

    def all(self) -> list[float]:
        """Sums of losses, |errors|, squared errors and norms; numbers of batches, images, steps and skipped images."""
        sums = [self.loss, self.error, self.squared_error, self.norm]
        return [*sums, self.batches, self.images, self.steps, self.skipped]


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
