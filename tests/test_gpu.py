"""The checks of scripts/gpu_check.sh, one by one."""

import sys

import pytest
import torch
from commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import gpu_check

NO_GPU = not torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", gpu_check.CHECKS)
def test_check(name):
    failed = [row for row in gpu_check.rows([name]) if not row.ok]
    assert not failed


@pytest.mark.skipif(not NO_GPU, reason="for machines without a GPU")
def test_without_a_gpu_one_line_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 1
    assert capsys.readouterr().err == (
        f"error: PyTorch {torch.__version__} sees no CUDA GPU here; these checks need one\n"
    )


@pytest.mark.parametrize("counts", [(0,), (3,), (0, 40, 1)])
def test_the_losses_that_the_checks_compare_run_on_a_cpu_too(counts):
    batch, density = gpu_check.random_batch(counts, "gst", crop=128)
    value, gradient = gpu_check.loss_and_gradient(gpu_check.build_loss("gst"), density, batch)
    assert value > 0 and gradient.shape == density.shape and gradient.isfinite().all()


def test_dm_count_as_published_is_the_loss_that_is_trained_with():
    batch, density = gpu_check.random_batch((30,), "dm-count")
    value, gradient = gpu_check.loss_and_gradient(gpu_check.build_loss("dm-count"), density, batch)
    published, of_published = gpu_check.published_dm_count(batch.points[0], density)
    torch.testing.assert_close(published, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_published, gradient, rtol=2e-2, atol=2e-2 * float(gradient.abs().max()))
