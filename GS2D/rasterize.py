"""Drawing 2D Gaussians: one signature, three backends.

``reference`` is plain PyTorch: the readable twin that the others are compared with. ``gsplat`` calls the stock ops of
gsplat 1.5.3 and needs CUDA. ``native`` is the CPU engine in ``GS2D/native``.

What is drawn (gsplat 1.5.3, Gaussians given in the image plane):

    q     = a dx^2 / 2 + b dx dy + c dy^2 / 2      (dx, dy) from the mean to the pixel's centre, (a, b, c) the conic
    alpha = min(0.999, exp(-q))                    skipped below 1/255
    C    += T alpha rgb;  T *= 1 - alpha           in the order of the index, T = 1 before the first;
                                                   a Gaussian that would bring T to 1e-4 or below ends the pixel undrawn
"""

from __future__ import annotations

import torch
from torch import Tensor

from GS2D import native
from GS2D.backends import resolve_backend
from GS2D.gaussians import Gaussians2D

ALPHA_MAX = 0.999  # gsplat 1.5.3 (later versions: 0.99); keeps 1 - alpha invertible in the backward pass
ALPHA_MIN = 1 / 255  # below one step of an 8-bit image a contribution is skipped
REACH = 3.33  # standard deviations, a little more than where exp(-q) falls to 1/255
TRANSMITTANCE_MIN = 1e-4  # a pixel is opaque from here on
TILE = 16  # pixels; gsplat's tile size


def rasterize(gaussians: Gaussians2D, width: int, height: int, backend: str = "auto") -> Tensor:
    """Draw opaque Gaussians (opacity 1) on black, float32 [height, width, 3]; differentiable.

    ``auto`` takes gsplat for tensors on CUDA and the native engine, if it can be built, for tensors on the CPU.
    """
    shape = conics(gaussians.scales, gaussians.rotations)
    return draw(gaussians.means, shape, gaussians.colors, width, height, backend)


def draw(
    means: Tensor,
    conics: Tensor,
    colors: Tensor,
    width: int,
    height: int,
    backend: str = "auto",
    page: Tensor | None = None,
    pages: int = 1,
) -> Tensor:
    """Draw opaque Gaussians given by means [N, 2], conics [N, 3] and colors [N, 3] -> [height, width, 3].

    page int64 [N]: the page that a Gaussian is drawn on, of several of one size -> [pages, height, width, 3]. It has that page's
    own coordinates and is seen on no other; ``reference`` and ``gsplat``.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width x height: {width} x {height}, an image has at least one pixel")
    backend = resolve_backend(backend, means.device)
    if backend == "native":
        return rasterize_native(means, conics, colors, width, height)
    draw_pages = rasterize_gsplat if backend == "gsplat" else rasterize_reference
    if page is not None:
        return draw_pages(means, conics, colors, width, height, page, pages)
    page = torch.zeros(len(means), dtype=torch.int64, device=means.device)
    return draw_pages(means, conics, colors, width, height, page, 1)[0]


def conics(scales: Tensor, rotations: Tensor) -> Tensor:
    """Upper triangle (a, b, c) [N, 3] of the inverse covariance of R diag(scales^2) R^T.

    scales [N, 2], rotations [N, 1] or [N]. The inverse has a closed form, R diag(1 / scales^2) R^T, so that no matrix is
    inverted; by the double angle, whose gradient is exactly 0 for round Gaussians: Adam would make steps of rounding errors.
    """
    theta = 2 * rotations.reshape(-1)
    i1, i2 = (1 / scales**2).unbind(-1)
    mean, half = (i1 + i2) / 2, (i1 - i2) / 2
    return torch.stack([mean + half * theta.cos(), half * theta.sin(), mean - half * theta.cos()], dim=-1)


def radii(conics: Tensor) -> Tensor:
    """Half sizes (x, y) [N, 2] in pixels of a box outside which alpha = exp(-q) < 1/255.

    That is the ellipse q <= log 255, whose extent along an axis is sqrt(2 log(255) variance).
    """
    a, b, c = conics.unbind(-1)
    return REACH * torch.sqrt(torch.stack([c, a], dim=-1) / (a * c - b * b)[:, None])


def rasterize_reference(
    means: Tensor, conics: Tensor, colors: Tensor, width: int, height: int, page: Tensor, pages: int
) -> Tensor:
    """The readable twin: any device, any float type, gradients by autograd. See ``draw``."""
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    background = (colors.sum() + means.sum() + conics.sum()) * 0  # keeps the graph where nothing is drawn
    canvas = torch.zeros(pages * tiles_y * tiles_x, TILE * TILE, 3, dtype=means.dtype, device=means.device) + background
    parts = [
        (tiles, _draw_tiles(tiles, members, means, conics, colors, tiles_x, tiles_y))
        for tiles, members in _tile_lists(means.detach(), conics.detach(), page, pages, tiles_x, tiles_y)
    ]
    if parts:
        tiles, pixels = map(torch.cat, zip(*parts))
        canvas = canvas.index_copy(0, tiles, pixels)
    canvas = canvas.reshape(pages, tiles_y, tiles_x, TILE, TILE, 3).transpose(2, 3)
    return canvas.reshape(pages, tiles_y * TILE, tiles_x * TILE, 3)[:, :height, :width]


@torch.no_grad()
def _tile_lists(means: Tensor, conics: Tensor, page: Tensor, pages: int, tiles_x: int, tiles_y: int):
    """Yield (tiles [T], members [T, K]): some tiles and the Gaussians that reach them, in index order, padded by -1.

    Tiles are numbered through all pages, row by row.
    """
    extent = radii(conics) + 1  # a box widened by one pixel cannot miss one by rounding
    (left, top), (right, bottom) = ((means - extent) / TILE).T, ((means + extent) / TILE).T
    tile = torch.arange(pages * tiles_y * tiles_x, device=means.device)[:, None]
    x, y = tile % tiles_x, tile // tiles_x % tiles_y
    reached = (left < x + 1) & (right > x) & (top < y + 1) & (bottom > y) & (page == tile // (tiles_x * tiles_y))
    tile, index = reached.nonzero(as_tuple=True)
    tiles, sizes = torch.unique_consecutive(tile, return_counts=True)
    starts = sizes.cumsum(0) - sizes
    if len(index) == 0:
        return
    # At most 2^22 pairs of pixel and Gaussian at once bound the memory.
    for part in torch.arange(len(tiles), device=means.device).split(max(1, 2**22 // (int(sizes.max()) * TILE * TILE))):
        slot = torch.arange(int(sizes[part].max()), device=means.device)
        position = (starts[part, None] + slot).clamp(max=len(index) - 1)
        yield tiles[part], torch.where(slot < sizes[part, None], index[position], -1)


def _draw_tiles(
    tiles: Tensor, members: Tensor, means: Tensor, conics: Tensor, colors: Tensor, tiles_x: int, tiles_y: int
) -> Tensor:
    """Pixels [T, TILE * TILE, 3] of the given tiles."""
    offsets = torch.arange(TILE, dtype=means.dtype, device=means.device) + 0.5
    x = (tiles % tiles_x * TILE).to(means.dtype)[:, None] + offsets.repeat(TILE)  # [T, P]
    y = (tiles // tiles_x % tiles_y * TILE).to(means.dtype)[:, None] + offsets.repeat_interleave(TILE)
    present = (members >= 0)[:, None]  # [T, 1, K]
    members = members.clamp(min=0)
    dx = x[:, :, None] - means[members, 0][:, None]  # [T, P, K]
    dy = y[:, :, None] - means[members, 1][:, None]
    a, b, c = (conics[members, i][:, None] for i in range(3))
    q = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = torch.exp(-q).clamp(max=ALPHA_MAX)
    alpha = torch.where(present & (alpha >= ALPHA_MIN) & (q >= 0), alpha, 0)
    after = torch.cumprod(1 - alpha, dim=2)  # transmittance behind each Gaussian
    before = torch.cat([torch.ones_like(after[:, :, :1]), after[:, :, :-1]], dim=2)
    weights = torch.where(after > TRANSMITTANCE_MIN, before * alpha, 0)
    return torch.einsum("tpk,tkc->tpc", weights, colors[members])


class _NativeRasterizer(torch.autograd.Function):
    """The native engine's forward and backward as one differentiable operation."""

    @staticmethod
    def forward(ctx, means, conics, colors, width, height):
        ctx.save_for_backward(means, conics, colors)
        arrays = (t.detach().numpy() for t in (means, conics, colors))
        return torch.from_numpy(native.render(*arrays, width, height))

    @staticmethod
    def backward(ctx, grad):
        arrays = (t.detach().numpy() for t in ctx.saved_tensors)
        height, width, _ = grad.shape
        gradients = native.render_backward(*arrays, width, height, grad.contiguous().numpy())
        return (*map(torch.from_numpy, gradients), None, None)


def rasterize_native(means: Tensor, conics: Tensor, colors: Tensor, width: int, height: int) -> Tensor:
    """The CPU engine; float32 on the CPU only. See ``draw``."""
    tensors = (means, conics, colors)
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors):
        raise ValueError(
            f"backend: native takes float32 on the CPU, got {means.dtype} on {means.device}; use 'reference'"
        )
    return _NativeRasterizer.apply(*(t.contiguous() for t in tensors), width, height)


def rasterize_gsplat(
    means: Tensor, conics: Tensor, colors: Tensor, width: int, height: int, page: Tensor, pages: int
) -> Tensor:
    """Stock gsplat 1.5.3 on CUDA, without a camera. See ``draw``."""
    if len(means) == 0:
        return torch.zeros(pages, height, width, 3, device=means.device)
    import gsplat

    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    with torch.no_grad():
        extent = torch.ceil(radii(conics)).to(torch.int32)
        # Depths only keep the order of the index.
        depths = torch.arange(1, len(means) + 1, dtype=torch.float32, device=means.device)
    # "Packed": one row a Gaussian, and which image it belongs to.
    rows = {"packed": True, "n_images": pages, "image_ids": page, "gaussian_ids": page}
    _, keys, flatten_ids = gsplat.isect_tiles(means.detach(), extent, depths, TILE, tiles_x, tiles_y, **rows)
    offsets = gsplat.isect_offset_encode(keys, pages, tiles_x, tiles_y)
    gaussians = [t.contiguous() for t in (means, conics, colors, torch.ones_like(depths))]
    return gsplat.rasterize_to_pixels(*gaussians, width, height, TILE, offsets, flatten_ids, packed=True)[0]
