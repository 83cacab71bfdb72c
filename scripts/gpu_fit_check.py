"""What only a GPU can show of fitting: gsplat against the reference, the atlas against single and native fits, and its cost.

python scripts/gpu_fit_check.py

``checks`` gives (what, whether it holds, the figure) for each; about a minute in all. The GPU tests run the same functions.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_splat import STANDING, atlas_seconds, full_atlas, scene, throughput
from GS2D import fit_dataset
from GS2D.fitting import FitConfig, fit_image, fit_images
from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import ALPHA_MIN, conics, draw, draw_pages
from utils.cli import default_workers

Row = tuple[str, bool, str]
COUNTS = (1, 32)  # images side by side
SIZES = ((90, 131), (64, 160), (200, 96), (128, 128), (33, 50), (150, 150), (97, 180), (120, 100))  # height, width


def photographs(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures of different sizes and points in them, some on borders and outside."""
    images, points = [], []
    for index in range(count):
        random, (height, width) = np.random.default_rng(index), SIZES[index % len(SIZES)]
        coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        images.append(np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]))
        points.append(random.uniform((-2, -2), (width + 2, height + 2), (int(random.integers(3, 60)), 2)))
    return images, points


def gsplat_equals_the_reference() -> Iterator[Row]:
    """Values and gradients of three pages at once, and of one; pixels where the 1/255 rule is undecided are set apart."""
    random, pages, width, height, count = np.random.default_rng(7), 3, 70, 50, 60
    page = torch.arange(pages).repeat_interleave(count)
    means = torch.tensor(random.uniform((-3, -3), (width + 3, height + 3), (pages * count, 2)), dtype=torch.float32)
    scales = torch.tensor(random.uniform(0.8, 6, (pages * count, 2)), dtype=torch.float32)
    shape = conics(scales, torch.tensor(random.uniform(0, 3.14, (pages * count, 1)), dtype=torch.float32))
    colors = torch.tensor(random.uniform(0, 1, (pages * count, 3)), dtype=torch.float32)
    opacities = torch.tensor(random.uniform(0.5, 1, pages * count), dtype=torch.float32)
    tensors = means, shape, colors, opacities

    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dx, dy = (axis.double() - means[:, i, None, None].double() for i, axis in enumerate((x, y)))
    a, b, c = (shape[:, i, None, None].double() for i in range(3))
    alpha = opacities[:, None, None] * torch.exp(-(a * dx * dx + c * dy * dy) / 2 - b * dx * dy)
    undecided = ((alpha - ALPHA_MIN).abs() < 1e-6).reshape(pages, count, height, width).any(1)  # [pages, H, W]
    weight = torch.tensor(random.standard_normal((pages, height, width, 3)), dtype=torch.float32)
    weight[undecided] = 0

    def run(device: str, backend: str, single: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        own = page == 0 if single else page >= 0
        leaves = [tensor[own].to(device).requires_grad_() for tensor in tensors]
        if single:
            image = draw(*leaves, width, height, backend)[None]
        else:
            image = draw_pages(*leaves, page.to(device), pages, width, height, backend)
        gradients = torch.autograd.grad((image * weight[: len(image)].to(device)).sum(), leaves)
        return image.detach().cpu(), [gradient.cpu() for gradient in gradients]

    for single in (True, False):
        expected, expected_gradients = run("cpu", "reference", single)
        got, gradients = run("cuda", "gsplat", single)
        kept = ~undecided[: len(got)]
        value = float((got - expected).abs()[kept].max())
        slope = max(float((g - e).abs().max() / e.abs().max()) for g, e in zip(gradients, expected_gradients))
        figure = f"values {value:.1e} (at most 1e-5), gradients {slope:.1e} of the largest (at most 1e-4)"
        figure += f"; {int((~kept).sum())} undecided pixels set apart"
        name = "gsplat = reference, one page" if single else f"gsplat = reference, {pages} pages"
        yield name, value <= 1e-5 and slope <= 1e-4, figure


def the_atlas_equals_single_fits() -> Iterator[Row]:
    """Eight images of different sizes together and alone, 200 iterations; beside it, one fit twice (sums by atomics)."""
    images, points = photographs(8)
    points[3] = points[3][:0]
    config = FitConfig(iterations=200)
    together = fit_images(images, points, config, backend="gsplat")
    alone = [fit_image(image, some, config, backend="gsplat") for image, some in zip(images, points)]
    again = fit_images(images, points, config, backend="gsplat")

    def differences(these: list, those: list) -> tuple[float, float]:
        loss = max(abs(one.render_loss - other.render_loss) for one, other in zip(these, those))
        pairs = [(one.gaussians.scales, other.gaussians.scales) for one, other in zip(these, those)]
        return loss, max(float((one - other).abs().max()) for one, other in pairs if len(one))

    loss, scales = differences(together, alone)
    noise, shaken = differences(together, again)
    figure = (
        f"loss {loss:.1e} (at most 1e-4), scales {scales:.1e} px; the same atlas twice {noise:.1e}, {shaken:.1e} px"
    )
    yield "atlas = single fits", loss <= 1e-4 and len(together[3].gaussians) == 0, figure


def the_atlas_fits_as_well_as_the_engine() -> Iterator[Row]:
    """Render loss after 300 iterations, and with a tolerance, against native fits."""
    images, points = photographs(8)
    for config in (FitConfig(iterations=300), FitConfig(iterations=800, tolerance=1e-3)):
        fits = [fit_images(images, points, config, backend=backend) for backend in ("gsplat", "native")]
        ratios = [ours.render_loss / theirs.render_loss for ours, theirs in zip(*fits)]
        iterations = [np.mean([fit.iterations for fit in some]) for some in fits]
        figure = f"loss {min(ratios):.4f} to {max(ratios):.4f} times native's (at most 1.01), "
        figure += f"{iterations[0]:.0f} / {iterations[1]:.0f} iterations"
        yield f"fits as good as native, tolerance {config.tolerance:g}", max(ratios) <= 1.01, figure


def what_an_iteration_costs() -> Iterator[Row]:
    """Milliseconds an image and iteration, memory, launches and waits, beside the native engine on all cores."""
    scenes = [scene(800, seed) for seed in range(8)]
    for images in COUNTS:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        atlas = full_atlas(images, scenes, "gsplat")
        took = 1000 * atlas_seconds(atlas, 30)
        peak = torch.cuda.max_memory_allocated() - before
        figure = f"{took:.2f} ms an iteration, {took / images:.3f} ms an image"
        figure += f", {peak / 2**30:.2f} GiB, {peak / (images * 1024 * 1536):.0f} bytes a pixel"
        yield (
            f"{images} images of 800",
            images != 32 or took / images <= 0.2,
            figure + " (at most 0.2)" * (images == 32),
        )
        if images in (1, 32):
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
                atlas.advance(10, STANDING)
                torch.cuda.synchronize()
            events = profiler.key_averages()
            launches = sum(e.count for e in events if "LaunchKernel" in e.key or "cudaMemsetAsync" in e.key) / 10
            waits = sum(e.count for e in events if "StreamSynchronize" in e.key) / 10
            busy = sum(getattr(e, "self_device_time_total", 0) for e in events) / 10_000
            work = f"{launches:.0f} launches and {waits:.1f} waits an iteration, the GPU works {busy:.2f} ms"
            longest = sorted(events, key=lambda e: -getattr(e, "self_device_time_total", 0))[:4]
            parts = ", ".join(f"{e.key[:40]} {e.self_device_time_total / 10_000:.2f}" for e in longest)
            yield f"an iteration of {images} images", launches <= 110 and waits <= 1.2, f"{work}; {parts}"
        del atlas
    cores, iterations = default_workers(), 200
    throughput(1, 800, 1, 1)  # may build the engine
    took = 1000 / (throughput(cores, 800, 2 * cores, iterations) * iterations)
    yield f"native on {cores} cores", True, f"{took:.3f} ms an image and iteration, {took * cores:.2f} ms on one core"


def memory_that_runs_out_halves_the_atlas() -> Iterator[Row]:
    """Eight images where there is room for about three."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (768, 1024, 3), dtype=np.uint8) for _ in range(8)]
    points = [random.uniform((0, 0), (1024, 768), (200, 2)) for _ in range(8)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    before = torch.cuda.memory_stats().get("num_ooms", 0)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3.5 * 768 * 1024 * 64) / total)
    try:
        results = fit_images(images, points, FitConfig(iterations=20), backend="gsplat")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    ran_out = torch.cuda.memory_stats()["num_ooms"] - before
    ok = ran_out > 0 and all(result.iterations == 20 and np.isfinite(result.render_loss) for result in results)
    yield "out of memory halves the atlas", ok, f"ran out {ran_out} times, 8 of 8 images fitted"


def a_data_set_is_fitted() -> Iterator[Row]:
    """The script with ``--backend auto``: which one it takes, files, an image that does not decode, one without points."""
    images, points = photographs(8)
    points[2] = points[2][:0]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "train"
        folder.mkdir()
        for index, (image, some) in enumerate(zip(images, points)):
            Image.fromarray(image).save(folder / f"{index}.png")
            np.save(folder / f"{index}.npy", some.astype(np.float32))
        whole = (folder / "5.png").read_bytes()
        (folder / "5.png").write_bytes(whole[: len(whole) // 2])
        out, err = io.StringIO(), io.StringIO()
        argv = ["2dgs_counting_1gs_gsplat.py", "--root-path", root, "--num-epochs", "100"]
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fit_dataset.main()
        counts = {p.name[0]: len(Gaussians2D.load(p)) for p in (folder / "gs_params").glob("[!.]*.h5")}
    first = out.getvalue().splitlines()[0]
    expected = {str(i): len(some) for i, some in enumerate(points) if i != 5}
    ok = code == 1 and counts == expected and first.startswith("backend gsplat: ") and "5.png" in err.getvalue()
    yield "a data set by itself", ok, f"{first}; {len(counts)} of 7 files, exit code {code}"


CHECKS = (
    gsplat_equals_the_reference,
    the_atlas_equals_single_fits,
    the_atlas_fits_as_well_as_the_engine,
    memory_that_runs_out_halves_the_atlas,
    a_data_set_is_fitted,
    what_an_iteration_costs,
)


def checks() -> list[Row]:
    """Every check on the current GPU; one that breaks is a row that does not hold."""
    rows: list[Row] = []
    for check in CHECKS:
        begin = time.perf_counter()
        try:
            rows += check()
        except Exception as error:  # the other checks still tell something
            rows.append((check.__name__, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
        rows.append((f"seconds: {check.__name__}", True, f"{time.perf_counter() - begin:.1f}"))
    return rows


if __name__ == "__main__":
    table = checks()
    for name, ok, figure in table:
        print(f"{'ok' if ok else 'FAILED':6} {name}: {figure}")
    sys.exit(not all(ok for _, ok, _ in table))
