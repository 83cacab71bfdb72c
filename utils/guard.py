"""Figures of training steps that stay on the device until somebody looks: the host never waits for them in a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Guard:
    """Keeps what is not finite away from the weights, and remembers the batch it came from.

    ``broken`` is 1 from the first loss or gradient on that is not finite. Fused Adam takes it as ``found_inf`` and then leaves
    weights, moments and its step as they are; a loss that passed ``gate`` has only NaN gradients then, which the scaler of
    float16 keeps away too, and which the mean over processes spreads to all of them. So the state stays the one before that
    batch until the flag is read, which may be many steps later.
    """

    def __init__(self, device: torch.device) -> None:
        self.broken = torch.zeros((), device=device)
        self._first = torch.full((2,), math.inf, device=device)  # batch of the first such loss, of the first such gradient
        self._nan = torch.full((), math.nan, device=device)

    def gate(self, loss: Tensor, index: int) -> Tensor:
        """The loss of batch ``index``, with NaN gradients if it, or anything before it, was not finite."""
        bad = ~loss.detach().isfinite()
        self._note(0, bad, index)
        return loss * torch.where(self.broken > 0, self._nan, 1)

    def watch(self, norm: Tensor, index: int) -> None:
        """Look at the norm of the gradient of the step that batch ``index`` completes."""
        self._note(1, ~norm.isfinite(), index)

    def _note(self, kind: int, bad: Tensor, index: int) -> None:
        self._first[kind] = torch.where(bad & (self.broken == 0), index, self._first[kind])
        self.broken.copy_(torch.maximum(self.broken, bad.float()))

    def found(self) -> tuple[str, int] | None:
        """("loss" or "gradient", batch) of what was not finite first on this process, if anything was. Waits for the device."""
        first = self._first.tolist()
        kind = min((0, 1), key=lambda kind: first[kind])
        return (("loss", "gradient")[kind], int(first[kind])) if first[kind] < math.inf else None


def gradient_norm(parameters: list[nn.Parameter], clip: float) -> Tensor:
    """The norm of all gradients, before they are clipped to ``clip`` (0: as they are): a scalar on their device."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def guarded_average(decay: float, guard: Guard):
    """``multi_avg_fn`` of an exponential moving average that stands still once ``guard`` is broken."""

    def update(averages: list[Tensor], values: list[Tensor], _: Tensor | int) -> None:
        weight = (1 - decay) * (1 - guard.broken)
        torch._foreach_lerp_(averages, values, [weight.to(average.dtype) for average in averages])

    return update


class EpochSums:
    """Sums over the batches of an epoch, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.batches = self.images = self.steps = self.skipped = 0

    def add(self, loss: Tensor, counts: Tensor, truths: Tensor) -> None:
        """The loss of a batch, the predicted and the annotated counts [B] of its crops."""
        errors = counts - truths
        self._sums[:3] += torch.stack([loss.detach().float(), errors.abs().sum(), errors.square().sum()])
        self.batches, self.images = self.batches + 1, self.images + len(counts)

    def add_norm(self, norm: Tensor) -> None:
        """The norm of the gradient of one step."""
        self._sums[3] += norm
        self.steps += 1

    def all(self) -> Tensor:
        """float64 [8]: sums of losses, |errors|, squared errors and norms; numbers of batches, images, steps, skipped images."""
        numbers = [self.batches, self.images, self.steps, self.skipped]
        return torch.cat([self._sums, torch.tensor(numbers, dtype=torch.float64).to(self._sums.device)])

    def means(self) -> dict[str, str]:
        """Loss and MAE so far, for a progress bar. Waits for the device."""
        loss, error, *_ = self._sums.tolist()
        return {"loss": f"{loss / self.batches:.2f}", "MAE": f"{error / self.images:.2f}"}
