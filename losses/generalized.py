"""Generalized loss (Wan, Liu and Chan, CVPR 2021): unbalanced optimal transport from the density to the points.

The potentials are geomloss's, whose schedule is that of the released code. Its cost value alone would not do: the loss
also needs the plan, and transports a density held constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from GS2D.kernel import centres
from losses.inputs import Annotations, samples

PIXELS = 512.0  # coordinates are divided by this, whatever the crop
EPSILON, RHO = 0.01, 0.5  # of the transport's entropy; how far mass may stay unmatched
SMALLEST_MASS = 1e-12  # of a cell, in the solver alone: without it an all-zero density has no finite plan
COSTS = ("exp", "perspective")


def generalized_loss(density: Tensor, batch: Annotations, **options) -> Tensor:
    """Mean over the batch of OT + 0.1 (pixel + point) + 0.01 entropy: [B, 1, h, w] -> scalar.

    Options: those of ``generalized_terms``. Every annotation counts 1, whatever its target. Without annotations:
    1.2 |sum of D|. Raises ValueError where shapes do not fit together.
    """
    terms = generalized_terms(density, batch, **options)
    return (terms * terms.new_tensor([1, 0.1, 0.1, 0.01])).sum(dim=1).mean()


def generalized_terms(
    density: Tensor, batch: Annotations, *, stride: int = 8, offset: float | None = None, cost: str = "exp"
) -> Tensor:
    """OT value, pixel term, point term and entropy of each crop, [B, 4].

    With f on cells and g on points, held constant as is E = exp((f + g - C) / epsilon), and the plan Pi = E D:

        OT = (rho + epsilon / 2) (<D, 1 - exp(-f / rho)> + <1, 1 - exp(-g / rho)>)
        pixel = sum_m (sum_n Pi held constant - D)^2;  point = sum_n |sum_m Pi - 1|
        entropy = mean over all entries of (Pi + 1e-20) log(Pi + 1e-20)

    offset: pixels from a cell's corner to where its mass is; None: its centre, stride / 2. The released code has 8.
    cost: "exp", exp(d / 0.6) - 1, or "perspective", exp(d / s) - 1 with s = 0.5 + 0.2 times the mean of the two y, the
    released code's default; distances and y in units of 512 pixels.
    Without annotations OT, pixel and point term are |sum of D| each.
    """
    if cost not in COSTS:
        raise ValueError(f"cost: {cost!r}, must be one of {', '.join(COSTS)}")
    terms = []
    for cells, points, _ in samples(density, batch):
        if not len(points):
            total = cells.sum().abs()
            terms.append(torch.stack([total, total, total, torch.zeros_like(total)]))
            continue
        shift = 0 if offset is None else offset - stride / 2
        x, y = (centres(cells.shape[axis], stride, cells) + shift for axis in (1, 0))
        places = torch.cartesian_prod(y, x).flip(1) / PIXELS  # [M, 2], (x, y)
        with torch.no_grad():
            f, g = potentials(cells.flatten(), places, points / PIXELS, cost)
            exponent = f[:, None] + g - exponential_cost(places, points / PIXELS, cost)
            ratio = exponent.div_(EPSILON).exp_()  # E [M, n]
        mass = cells.flatten()
        plan = mass[:, None] * ratio + 1e-20
        value = (mass * (1 - (-f / RHO).exp())).sum() + (1 - (-g / RHO).exp()).sum()
        pixel = ((ratio.sum(dim=1) * mass).detach() - mass).square().sum()
        point = (mass @ ratio - 1).abs().sum()
        terms.append(torch.stack([(RHO + EPSILON / 2) * value, pixel, point, (plan * plan.log()).mean()]))
    return torch.stack(terms)


def potentials(mass: Tensor, places: Tensor, points: Tensor, cost: str) -> tuple[Tensor, Tensor]:
    """f [M] on the cells and g [n] on the points, by epsilon scaling from the diameter of all of them down to epsilon.

    Call it without gradients: geomloss switches them on where it ends.
    """
    from geomloss import SamplesLoss  # here: kernels and the other losses do without it

    low, high = torch.cat([places, points]).aminmax(dim=0)
    solve = SamplesLoss(
        "sinkhorn",
        p=1,
        blur=EPSILON,
        reach=RHO,
        diameter=max(float((high - low).norm()), EPSILON),  # 0 where one cell lies on one point
        scaling=0.5,
        cost=lambda a, b: exponential_cost(a, b, cost),
        debias=False,
        potentials=True,
        backend="tensorized",
    )
    mass = torch.where(mass < SMALLEST_MASS, SMALLEST_MASS, mass)  # NaN stays
    f, g = solve(mass, places, torch.ones_like(points[:, 0]), points)
    return f.flatten(), g.flatten()


def exponential_cost(a: Tensor, b: Tensor, cost: str) -> Tensor:
    """exp(d / s) - 1 between a [..., I, 2] and b [..., J, 2], in units of 512 pixels: [..., I, J]."""
    distance = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    if cost == "exp":
        return distance.div_(0.6).exp_().sub_(1)
    scale = 0.5 + 0.1 * (a[..., :, None, 1] + b[..., None, :, 1])
    return distance.div_(scale).exp_().sub_(1)
