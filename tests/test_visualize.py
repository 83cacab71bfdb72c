"""Reading and drawing a transport kernel."""

from __future__ import annotations

import numpy as np
from commands import call
from PIL import Image

from GS2D.gaussians import Gaussians2D
from GS2D.kernel import transport_kernel
from GS2D.visualize import summarise_kernel
from utils.evaluation.figures import truth_density
from utils.files import gaussians_path, list_images, points_path
from utils.images import save_jpeg


def test_summary_of_a_kernel_equals_the_dense_matrix():
    random = np.random.default_rng(0)
    kernel = transport_kernel(
        random.uniform(0, 96, (9, 2)), random.uniform(2, 15, (9, 2)), random.uniform(0, 3, (9, 1)), (64, 96)
    )
    dense = kernel.to_dense().double().numpy()
    owners, background, entropy = summarise_kernel(kernel, (8, 12))
    owner = dense.argmax(0)
    np.testing.assert_array_equal(owners, np.where(owner == 9, -1, owner).reshape(8, 12))
    np.testing.assert_allclose(background, dense[-1].reshape(8, 12), atol=1e-6)
    expected = -(dense * np.log(np.maximum(dense, 1e-300))).sum(0)
    np.testing.assert_allclose(entropy, expected.reshape(8, 12), atol=1e-4)
    nobody = transport_kernel(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 1)), 16)
    owners, background, entropy = summarise_kernel(nobody, (2, 2))
    assert (owners == -1).all() and (background == 1).all() and (entropy == 0).all()


def test_truth_density_keeps_the_number_of_points():
    points = np.array([[0.0, 0.0], [99.9, 59.9], [50.0, 30.0], [100.0, 60.0]])
    assert abs(truth_density(points, 60, 100).sum() - 4) < 1e-9


def test_the_script_draws_one_png_which_is_none_of_the_images(tmp_path, monkeypatch):
    random, image = np.random.default_rng(1), tmp_path / "train" / "IMG_0001.jpg"
    gaussians_path(image).parent.mkdir(parents=True)
    save_jpeg(random.integers(0, 256, (100, 140, 3), dtype=np.uint8), image, 90)
    points = random.uniform((0, 0), (140, 100), (12, 2)).astype(np.float32)
    np.save(points_path(image), np.c_[points, np.full(12, 20)])
    shapes = random.uniform(2, 9, (12, 2)), random.uniform(0, 3, (12, 1)), random.random((12, 3))
    Gaussians2D(points, *shapes).save(gaussians_path(image))
    monkeypatch.chdir(tmp_path)
    out, _ = call("GS2D/visualize.py", image)
    drawn = image.parent / "gs_params" / "IMG_0001_gst.png"
    assert out.startswith(f"{drawn}: 12 annotations") and list_images(image.parent) == [image]
    with Image.open(drawn) as picture:
        assert picture.width > 4 * picture.height and np.asarray(picture.convert("L")).std() > 20
    call("GS2D/visualize.py", image, "--out", tmp_path / "new" / "picture.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "train"]
    assert "no.jpg" in call("GS2D/visualize.py", tmp_path / "train" / "no.jpg", code=1)[1]
