"""What only a GPU can show of fitting: gsplat against the reference, images side by side against single and native fits, waits.

On a CPU the same checks run with the reference in gsplat's place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from commands import call, errors
from PIL import Image
from test_atlas import crowd
from test_rasterize import draw_slowly, make_scene
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_splat import fit
from GS2D.fitting import FitConfig, fit_image, fit_images
from GS2D.gaussians import Gaussians2D
from GS2D.rasterize import draw

ON_GPU = torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")]
BACKENDS = [pytest.param("gsplat", "cuda", marks=GPU), ("reference", "cpu")]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("pages", [1, 3])
def test_values_and_gradients_are_those_of_the_loop(backend, device, pages):
    """Also of scenes side by side; pixels where a rule is undecided are set apart."""
    width, height, count = 70, 50, 60
    scenes = [make_scene(width, height, count, low=1, high=6, margin=3.0, seed=100 * page) for page in range(pages)]
    exact = [torch.cat(parts).requires_grad_() for parts in zip(*scenes)]
    drawn = [draw_slowly(*parts, width, height) for parts in zip(*(leaf.split(count) for leaf in exact))]
    expected, undecided = (torch.stack(parts) for parts in zip(*drawn))
    undecided = undecided < 3e-4  # [pages, H, W]
    weight = torch.randn(expected.shape, generator=torch.manual_seed(7), dtype=torch.float64)
    weight[undecided] = 0
    slopes = torch.autograd.grad((expected * weight).sum(), exact)

    leaves = [leaf.detach().float().to(device).requires_grad_() for leaf in exact]
    page = torch.arange(pages, device=device).repeat_interleave(count)
    image = draw(*leaves, width, height, backend, *((page, pages) if pages > 1 else ())).reshape(expected.shape)
    gradients = torch.autograd.grad((image * weight.float().to(device)).sum(), leaves)
    assert undecided.float().mean() < 0.01
    assert (image.detach().cpu() - expected).abs()[~undecided].max() <= 1e-5
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient.cpu() - slope).abs().max() <= 1e-4 * slope.abs().max()


@pytest.mark.parametrize(
    ("backend", "config"),
    [
        pytest.param("gsplat", FitConfig(iterations=300), marks=GPU),
        pytest.param("gsplat", FitConfig(iterations=800, tolerance=1e-3), marks=GPU),
        ("reference", FitConfig(iterations=5)),
    ],
)
def test_images_side_by_side_are_fitted_as_alone_and_as_well_as_by_the_native_engine(backend, config):
    images, points = crowd()
    together, native = (fit_images(images, points, config, backend=name) for name in (backend, "native"))
    for image, some, fitted, other in zip(images, points, together, native, strict=True):
        alone = fit_image(image, some, config, backend=backend)
        assert abs(fitted.render_loss - alone.render_loss) <= 1e-4 and len(fitted.gaussians) == len(some)
        assert fitted.render_loss <= 1.01 * other.render_loss


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
def test_an_iteration_launches_no_more_for_many_images_and_waits_once():
    def events(images, iterations):
        fit(800, images, iterations, "gsplat")
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            fit(800, images, iterations, "gsplat")
            torch.cuda.synchronize()
        found = profiler.key_averages()
        launches = sum(e.count for e in found if "LaunchKernel" in e.key or "cudaMemsetAsync" in e.key)
        return np.array([launches, sum(e.count for e in found if "StreamSynchronize" in e.key)])

    one, many = ((events(images, 30) - events(images, 10)) / 20 for images in (1, 32))
    assert many[0] <= 1.1 * one[0] and max(one[1], many[1]) <= 1.2


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
def test_memory_that_runs_out_is_one_line():
    """Eight images where there is room for about two, though it looked like more."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (768, 1024, 3), dtype=np.uint8) for _ in range(8)]
    points = [random.uniform((0, 0), (1024, 768), (200, 2)) for _ in range(8)]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2.5 * 768 * 1024 * 64) / total)
    try:
        with pytest.raises(ValueError, match="^out of memory; use --device cpu"):
            fit_images(images, points, FitConfig(iterations=20), backend="gsplat")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    results = fit_images(images, points, FitConfig(iterations=20), backend="gsplat")
    assert all(result.iterations == 20 and np.isfinite(result.render_loss) for result in results)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
def test_a_data_set_is_fitted_by_itself(tmp_path):
    """Which backend it takes, its files, an image that does not decode, one without points."""
    folder = tmp_path / "train"
    folder.mkdir()
    for index, (image, some) in enumerate(zip(*crowd())):
        Image.fromarray(image).save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", some.astype(np.float32))
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:-200])
    out, err = call("2dgs_counting_1gs_gsplat.py", "--root-path", tmp_path, "--num-epochs", 50, code=1)
    counts = {int(path.name[0]): len(Gaussians2D.load(path)) for path in (folder / "gs_params").glob("[!.]*.h5")}
    assert counts == {0: 12, 2: 9, 3: 0, 4: 5}
    assert out.startswith("backend gsplat: ") and "1.png" in errors(err)[0]
