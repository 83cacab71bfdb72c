"""The networks: golden numbers, sizes, batches, the graph, the attention's variance, initial weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import fill

from models import attention_variance, build_model
from models.vgg_trans import in_degree_index
from utils.evaluation import count

DATA = Path(__file__).parent / "data"
NAMES = ("vgg", "vgg_trans")


@pytest.fixture(scope="module")
def golden():
    """Numbers of the released networks, and counts of the released script in windows."""
    with np.load(DATA / "models.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def filled():
    """Both networks in eval mode with the golden weights; tests that change them change them back."""
    return {name: fill(build_model(name)) for name in NAMES}


def normal_images(seed, *shape):
    return torch.from_numpy(np.random.RandomState(int(seed)).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("name, parameters", [("vgg", 21_499_457), ("vgg_trans", 29_009_737)])
def test_names_shapes_and_the_windowed_count_are_the_released_ones(golden, filled, name, parameters):
    shapes = {key: list(tensor.shape) for key, tensor in filled[name].state_dict().items()}
    assert shapes == json.loads(str(golden[f"{name}/keys"]))
    assert sum(parameter.numel() for parameter in filled[name].parameters()) == parameters
    image = normal_images(golden[f"{name}/big_seed"], 3, 530, 1100)
    assert count(filled[name], image) == pytest.approx(float(golden[f"{name}/big_count"]), rel=1e-4)


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("name", NAMES)
def test_golden(golden, filled, name, case):
    height, width = golden[f"{name}/{case}/hw"]
    images = normal_images(golden[f"{name}/{case}/input_seed"], 1, 3, height, width)
    with torch.no_grad():
        prediction = filled[name](images)
    expected = golden[f"{name}/{case}/density"]
    assert prediction.density.shape == expected.shape
    assert np.abs(prediction.density.numpy() - expected).max() <= 1e-4 * expected.max()
    variances = attention_variance(prediction.attention)
    if name == "vgg":
        assert prediction.attention == () and variances.shape == (0,) and variances.sum() == 0
    else:
        expected = golden[f"{name}/{case}/attn_var"]
        assert np.abs(variances.numpy() - expected).max() <= 1e-4 * expected.max()


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_singles(filled, name):
    images = normal_images(7, 3, 3, 130, 107)
    images[1] *= 0.2
    with torch.no_grad():
        together = filled[name](images)
        alone = [filled[name](image[None]) for image in images]
    singles = torch.cat([prediction.density for prediction in alone])
    assert (together.density - singles).abs().max() <= 1e-5 * singles.max()
    assert not torch.allclose(singles[0], singles[1], rtol=0.01)
    for layer, maps in enumerate(together.attention):
        assert (maps - torch.cat([prediction.attention[layer] for prediction in alone])).abs().max() <= 1e-5
    if name == "vgg_trans":
        mean = torch.stack([attention_variance(prediction.attention) for prediction in alone]).mean(dim=0)
        torch.testing.assert_close(attention_variance(together.attention), mean, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_smallest_and_too_small_images(filled, name):
    with torch.no_grad():
        prediction = filled[name](normal_images(1, 2, 3, 16, 16))
    assert prediction.density.shape == (2, 1, 2, 2) and prediction.density.isfinite().all()
    assert (prediction.density >= 0).all()
    assert attention_variance(prediction.attention).sum() == 0
    for height, width in ((15, 64), (64, 15)):
        with pytest.raises(ValueError, match=f"at least 16 x 16 pixels, got {height} x {width}"):
            filled[name](torch.zeros(1, 3, height, width))
    for shape in ((3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
            filled[name](torch.zeros(shape))


def in_degree_index_by_loops(tokens, topk, usenum):
    length, channels = tokens.shape
    distances = np.array([[math.dist(a, b) for b in tokens.tolist()] for a in tokens.tolist()]) / math.sqrt(channels)
    np.fill_diagonal(distances, distances.max())
    in_degree = np.zeros(length, dtype=np.float32)
    for row in distances:
        in_degree[np.argsort(row)[: max(1, int(topk * length))]] += 1
    return [int(value / in_degree.max() * np.float32(usenum - 1)) for value in in_degree]


def test_in_degree_index_against_loops_and_of_a_known_graph():
    for length, topk, usenum in ((30, 0.3, 18), (61, 0.1, 18), (40, 0.7, 5), (5, 0.01, 18)):
        tokens = normal_images(length, 3, length, 16) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
        index = in_degree_index(tokens, topk, usenum)
        assert index.dtype == torch.int64
        assert index.tolist() == [in_degree_index_by_loops(sample, topk, usenum) for sample in tokens]
    # On this line the nearest other token of 0 and of 3 is 1, that of 1 is 0, that of 8 is 3: degrees 1, 2, 1, 0.
    line = torch.tensor([0.0, 1.0, 3.0, 8.0])[None, :, None]
    assert in_degree_index(line, 0.3, 18).tolist() == [[8, 17, 8, 0]]
    assert in_degree_index(line, 1.0, 18).tolist() == [[17, 17, 17, 17]]
    assert in_degree_index(line[:, :1], 0.3, 18).tolist() == [[17]]


def test_topk_and_usenum_reach_the_encoder(filled):
    images = normal_images(3, 1, 3, 64, 64)
    other = build_model("vgg_trans", topk=0.6, usenum=18)
    other.load_state_dict(filled["vgg_trans"].state_dict())
    with torch.no_grad():
        assert not torch.allclose(other.eval()(images).density, filled["vgg_trans"](images).density, rtol=1e-3)
    few = build_model("vgg_trans", topk=0.25, usenum=5)
    assert few.encoder.near_embeddings.weight.shape == (5, 512)
    assert (few.name, few.topk, few.usenum) == ("vgg_trans", 0.25, 5)


def test_attention_maps_and_gradients_in_training(filled):
    model = filled["vgg_trans"].train()
    try:
        torch.manual_seed(0)
        images = normal_images(5, 2, 3, 64, 48)
        first, second = model(images), model(images)
        assert not torch.equal(first.density, second.density)
        assert [maps.shape for maps in first.attention] == [(2, 8, 12, 12)] * 2
        for maps in first.attention:  # rows that sum to 1 show that dropout has not touched them
            torch.testing.assert_close(maps.sum(dim=-1), torch.ones(2, 8, 12))
        attention_variance(second.attention)[1].backward()  # alone it has a gradient too
        assert model.encoder.layers[1].self_attn.w_ks.weight.grad.abs().sum() > 0
        model.zero_grad(set_to_none=True)
        (first.density.sum() + 0.1 * attention_variance(first.attention).sum()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def test_attention_variance_known_value():
    # Rows (1, 0) and (1/2, 1/2) have unbiased variances 1/2 and 0; 3 heads of each, and a second, uniform sample.
    sharp = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).expand(1, 3, 2, 2)
    layer = torch.cat([sharp, torch.full((1, 3, 2, 2), 0.5)])
    torch.testing.assert_close(attention_variance((layer, sharp)), torch.tensor([0.75, 1.5]))


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("resnet", {}, "vgg, vgg_trans, got 'resnet'"),
        ("vgg_trans", {"topk": float("nan")}, r"topk must be in \(0, 1\], got nan"),
        ("vgg", {"usenum": 1.5}, "usenum must be a whole number >= 1, got 1.5"),
    ],
)
def test_impossible_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **arguments)


def test_initial_weights():
    torch.manual_seed(11)
    model = build_model("vgg_trans")
    for convolution in (model.features[2], model.features[34]):
        outputs = convolution.out_channels * 9
        assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / outputs), rel=0.02)
        assert (convolution.bias == 0).all()
    matrices = [parameter for parameter in model.encoder.parameters() if parameter.ndim > 1]
    assert len(matrices) == 2 * 6 + 1 + 2
    for matrix in matrices:
        receptive = math.prod(matrix.shape[2:])
        bound = math.sqrt(6 / ((matrix.shape[0] + matrix.shape[1]) * receptive))
        assert 0.99 * bound < matrix.abs().max() <= bound
    assert (model.encoder.layers[0].norm1.eps, model.encoder.layers[0].self_attn.layer_norm.eps) == (1e-5, 1e-6)
    torch.manual_seed(11)
    again = build_model("vgg_trans").state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
