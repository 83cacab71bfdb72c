"""The transported-mass loss (Eq. 6 of Shang and Hong, AAAI 2026): one matrix product with a kernel known before training.

GST, BL and BL+ differ in their kernel alone: ``losses.KERNELS``. K needs no gradient, so the loading processes make it.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from GS2D.kernel import Array, BlockKernel, block_diagonal, dense_transport_kernel, gst_kernel, transport_kernel
from losses.inputs import Annotations, check_density

__all__ = ["TransportedMassLoss", "dense_transport_kernel", "gst_kernel", "transport_kernel", "transported_mass_loss"]


def transported_mass_loss(
    density: Tensor, batch: Annotations, *, background_weight: float = 1.0, count_weight: float = 0.0
) -> Tensor:
    """Eq. 6, mean over the batch of sum_n |target_n - (K D)_n|, the background's target being 0: [B, 1, h, w] -> scalar.

    The background's term counts ``background_weight`` times, and ``count_weight`` |sum D - sum_n target_n| is added. Float32
    under any precision. A crop without annotations has one row, all background: |sum of D|. Raises ValueError for a batch
    without kernels and where shapes do not fit together.
    """
    check_density(density)
    if batch.kernel is None:
        raise ValueError("batch: has no transport kernels; give Crowd the kernel of this loss (losses.build_kernel)")
    rows, columns = len(batch.kernel.indptr) - 1, len(batch.kernel.column_indptr) - 1
    if columns != density.numel() or len(batch.received) != rows:
        raise ValueError(
            f"density: {tuple(density.shape)}, {density.numel()} cells, and {len(batch.received)} targets, but the kernel of "
            f"the batch has {columns} columns and {rows} rows"
        )
    received = batch.received.float()
    weights = None if background_weight == 1 else torch.where(received > 0, 1.0, background_weight)
    loss = _TransportedMass.apply(density.float().flatten(), received, weights, len(density), *batch.kernel)
    if count_weight:
        loss = loss + count_weight * (density.float().sum((1, 2, 3)) - batch.targets.float().sum(1)).abs().mean()
    return loss


class TransportedMassLoss(nn.Module):
    """``transported_mass_loss`` of kernels that do not come from a loader."""

    def forward(self, density: Tensor, kernels: Sequence[Tensor], targets: Sequence[Array]) -> Tensor:
        """density [B, 1, h, w], B sparse kernels [N + 1, M] (or [N, M]), B targets [N] (fractions allowed) -> scalar.

        Only the density receives a gradient. Raises ValueError where shapes do not fit together.
        """
        check_density(density)
        if not len(density) == len(kernels) == len(targets):
            lengths = f"{len(density)}, {len(kernels)} and {len(targets)}"
            raise ValueError(f"density, kernels, targets: {lengths} samples, expected equally many")
        received = []
        for b, (kernel, target) in enumerate(zip(kernels, targets)):
            target = torch.as_tensor(target).cpu().reshape(-1)
            if kernel.shape[1] != density[b].numel() or not 0 <= kernel.shape[0] - len(target) <= 1:
                shapes = f"kernel {tuple(kernel.shape)} and {len(target)} targets"
                raise ValueError(f"density[{b}]: {tuple(density.shape[2:])} cells do not fit its {shapes}")
            received.append(torch.nn.functional.pad(target, (0, kernel.shape[0] - len(target))))
        blocks = block_diagonal([kernel.cpu() for kernel in kernels])
        blocks, received = [part.to(density.device) for part in blocks], torch.cat(received).to(density.device)
        return transported_mass_loss(density, SimpleNamespace(kernel=BlockKernel(*blocks), received=received))


class _TransportedMass(torch.autograd.Function):
    """sum w |K D - target| / B and its gradient K^T (w sign(K D - target)) / B: a product each, no gradient for K."""

    @staticmethod
    def forward(ctx, cells: Tensor, target: Tensor, weights: Tensor | None, samples: int, *kernel: Tensor) -> Tensor:
        residual = _product(*kernel[:3], cells) - target
        sign = residual.sign()
        if weights is not None:
            residual, sign = residual * weights, sign * weights
        ctx.save_for_backward(sign, *kernel[3:])
        ctx.samples, loss = samples, torch.linalg.vector_norm(residual, 1)
        return loss / samples if samples > 1 else loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sign, *transposed = ctx.saved_tensors
        cells = _product(*transposed, sign).mul_(gradient)
        return cells.div_(ctx.samples) if ctx.samples > 1 else cells, *[None] * 9


def _product(indptr: Tensor, indices: Tensor, data: Tensor, vector: Tensor) -> Tensor:
    """A matrix in compressed rows times a vector, float32, the same bits every time."""
    if vector.device.type == "cpu" and torch.backends.mkl.is_available():
        size = (len(indptr) - 1, len(vector))
        return torch.mv(torch.sparse_csr_tensor(indptr, indices, data, size, check_invariants=False), vector)
    # cuSPARSE adds in an order that changes from run to run. ``unsafe``: no check that would wait for the device.
    terms = data * vector.index_select(0, indices)
    return torch.segment_reduce(terms, "sum", offsets=indptr, initial=0, unsafe=True)
