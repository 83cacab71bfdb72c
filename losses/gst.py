"""GST (Shang and Hong, AAAI 2026): the density transported with kernels of the fitted Gaussians, against the targets."""

from __future__ import annotations

from torch import Tensor

from losses.inputs import Annotations, check_density
from losses.kernel import TransportKernel
from losses.transport import TransportedMassLoss, transport_kernels


def gst_loss(density: Tensor, sample: Annotations, *, stride: int = 8, **kernel: float) -> Tensor:
    """Eq. 6, mean over the batch of sum_n |target_n - (K D)_n|, with K by Eqs. 5 and 7: [B, 1, h, w] -> scalar.

    ``kernel``: parameters of ``losses.transport.transport_kernels``. Stored kernels are taken where the sample has them;
    they hold their own parameters. A crop without annotations has loss |sum of D|. Raises ValueError where shapes do not
    fit together and for annotations from which no kernel can be made.
    """
    check_density(density)
    if sample.kernels and sample.kernels[0] is not None:
        kernels = [TransportKernel.from_csr(*stored[:4]).to(density.device) for stored in sample.kernels]
    else:
        size = (density.shape[2] * stride, density.shape[3] * stride)
        kernels = transport_kernels(sample.points, sample.scales, sample.rotations, size, stride=stride, **kernel)
    return TransportedMassLoss()(density, kernels, sample.targets)
