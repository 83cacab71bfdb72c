"""Files of weights: checkpoints of both networks, VGG19 and VGG16 backbones, and what is wrong with others."""

from __future__ import annotations

import urllib.error
from collections import OrderedDict

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg as torchvision_vgg

from models import build_model, load_backbone, load_weights, read_checkpoint
from utils.training.run_folder import describe, save_weights

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
EMBEDDINGS = "encoder.near_embeddings.weight"
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(1)
    return build_model("vgg")


@pytest.fixture(scope="module")
def vgg_trans():
    torch.manual_seed(2)
    return build_model("vgg_trans")


@pytest.fixture(scope="module")
def features16():
    """VGG16 features of torchvision with random weights and biases, the last pooling left out."""
    torch.manual_seed(3)
    features = torchvision_vgg.make_layers(torchvision_vgg.cfgs["D"])[:-1]
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.05)
    return features


@pytest.fixture
def file(tmp_path):
    """A path for weights, removed afterwards: pytest keeps temporary folders, and these files are large."""
    path = tmp_path / "weights.pth"
    yield path
    if path.is_file():
        path.unlink()


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in state.items())


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shapes_of(model, prefix=""):
    """Its state in small: expanded from one value, since shapes are all that is looked at."""
    return {f"{prefix}{name}": torch.zeros(1).expand(tensor.shape) for name, tensor in model.state_dict().items()}


def error_line(kind, function, *arguments):
    with pytest.raises(kind) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def only(state, *names):
    """``state`` with a single number under each of these names."""
    state.clear()
    state.update({name: torch.zeros(1) for name in names})


@pytest.mark.parametrize(
    "name, change, expected",
    [
        (
            "vgg",
            lambda state: only(state, "reg_layer_0.a"),
            "2.weight, ...) and 1 unexpected (reg_layer_0.a); they fit",
        ),
        ("vgg_trans", lambda state: only(state, "reg_layer.a"), "they fit --model-name vgg"),
        ("vgg", lambda state: state.update(a=torch.zeros(1)), "1 unexpected (a); an incomplete or modified"),
        ("vgg", lambda state: state.pop("reg_layer.4.bias"), "1 missing (reg_layer.4.bias); an incomplete"),
        ("vgg", lambda state: state.update({"features.0.bias": torch.zeros(5)}), "features.0.bias has shape [5]"),
        ("vgg", lambda state: only(state, "features.0.bias"), "for the features alone use --backbone-weights"),
        ("vgg", lambda state: only(state, "fc.weight"), "the file belongs to another network"),
        ("vgg_trans", lambda state: state.update({EMBEDDINGS: torch.zeros(5, 512)}), "build the model with usenum 5"),
        ("vgg_trans", lambda state: state.update({EMBEDDINGS: torch.zeros(5)}), "use a checkpoint of this network"),
    ],
)
def test_weights_that_do_not_fit(vgg, vgg_trans, file, name, change, expected):
    model = {"vgg": vgg, "vgg_trans": vgg_trans}[name]
    state, before = shapes_of(model), snapshot(model)
    change(state)
    torch.save(state, file)
    line = error_line(ValueError, load_weights, model, str(file))
    assert line.startswith(f"{file}: ") and expected in line
    assert same(before, model.state_dict())


@pytest.mark.parametrize("load", [load_weights, load_backbone])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(range(256))], ids=["empty", "image"])
def test_damaged_file(vgg, file, load, content):
    """Text, a file cut off and foreign code: tests/bad_inputs, test_untrusted.py."""
    file.write_bytes(content)
    line = error_line(ValueError, load, vgg, file)
    assert str(file) in line and "not a readable PyTorch weights file" in line


@pytest.mark.parametrize("content", [[torch.ones(2)], {}, {"epoch": 3}, {"model_state_dict": None}, torch.ones(3)])
def test_not_a_state_dict(vgg, file, content):
    torch.save(content, file)
    line = error_line(ValueError, load_weights, vgg, file)
    assert str(file) in line and "neither a state_dict" in line


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_deepened_vgg16_is_the_same_function(features16, file, prefix):
    state = {prefix + name: tensor for name, tensor in features16.state_dict().items()}
    torch.save({**state, "classifier.0.weight": torch.zeros(4096, 1)}, file)
    model = build_model("vgg")
    head = snapshot(model.reg_layer)
    load_backbone(model, file)
    load_backbone(model, "none")
    assert same(head, model.reg_layer.state_dict())
    # In double precision no convolution takes a shortcut (Winograd) that would round an identity.
    images = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    reference = nn.Sequential(*features16).double()
    with torch.no_grad():
        expected = reference(images)
        actual = model.features.double()(images)
    reference.float()
    assert expected.abs().max() > 0.1
    assert torch.equal(actual, expected)


def test_vgg19_file(vgg_trans, file):
    features = torchvision_vgg.make_layers(torchvision_vgg.cfgs["E"])
    torch.save({f"features.{name}": tensor for name, tensor in features.state_dict().items()}, file)
    load_backbone(vgg_trans, str(file))
    assert same(features.state_dict(), vgg_trans.features.state_dict())


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda state: state.pop("features.34.weight"), "features.34.weight is missing"),
        (lambda state: [state.pop(f"features.34.{kind}") for kind in ("weight", "bias")], "neither VGG19 nor VGG16"),
        (lambda state: state.update({"features.35.weight": torch.zeros(1)}), "neither VGG19 nor VGG16"),
        (lambda state: state.update({"features.2.weight": torch.zeros(64, 64, 1, 1)}), "[64, 64, 1, 1], VGG needs"),
        (lambda state: only(state, "conv1.weight"), "neither VGG19 nor VGG16"),
    ],
)
def test_wrong_backbone_files(vgg, file, change, expected):
    state, before = shapes_of(vgg.features, "features."), snapshot(vgg)
    change(state)
    torch.save(state, file)
    line = error_line(ValueError, load_backbone, vgg, file)
    assert line.startswith(f"{file}: ") and expected in line
    assert same(before, vgg.state_dict())


def write_keras(path, features):
    """The convolutions of VGG16 in the layout that Keras gives a model of five Sequential blocks."""
    layers = iter([layer for layer in features if isinstance(layer, nn.Conv2d)])
    with h5py.File(path, "w") as stream:
        for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
            for name in ("conv2d", "conv2d_1", "conv2d_2")[:depth]:
                layer = next(layers)
                stream[f"block{block}/layers/{name}/vars/0"] = layer.weight.detach().permute(2, 3, 1, 0).numpy()
                stream[f"block{block}/layers/{name}/vars/1"] = layer.bias.detach().numpy()


def test_keras_vgg16(vgg, vgg_trans, features16, file):
    write_keras(file, features16)
    load_backbone(vgg, file)
    rgb = torch.from_numpy(np.random.RandomState(5).randint(0, 256, (3, 32, 40))).float()
    caffe = rgb.flip(0) - torch.tensor((103.939, 116.779, 123.68)).view(3, 1, 1)
    first = features16[0]
    with torch.no_grad():
        expected = F.conv2d(caffe[None], first.weight, first.bias, padding=1)
        actual = vgg.features[0](((rgb / 255 - MEAN) / STD)[None])
    difference = (actual - expected).abs()
    assert difference[..., 1:-1, 1:-1].max() <= 1e-5 * expected.abs().max()
    # The border sees our mean outside the image instead of Caffe's, less than half a grey level away.
    assert (difference.amax(dim=(2, 3))[0] <= 0.5 * first.weight.abs().sum(dim=(1, 2, 3))).all()
    torch.save(features16.state_dict(), file)
    load_backbone(vgg_trans, file)
    assert all(torch.equal(*pair) for pair in zip(vgg.features[1:].parameters(), vgg_trans.features[1:].parameters()))


def test_wrong_keras_files(vgg, features16, file, tmp_path):
    before = snapshot(vgg)
    with h5py.File(tmp_path / "params.h5", "w") as stream:
        stream["params"] = np.zeros((4, 8), dtype=np.float32)
    line = error_line(ValueError, load_backbone, vgg, tmp_path / "params.h5")
    assert "block1/layers/conv2d/vars/0 is missing" in line
    assert f"{tmp_path}: no such backbone file" in error_line(FileNotFoundError, load_backbone, vgg, tmp_path)
    write_keras(file, features16)
    with open(file, "r+b") as stream:
        stream.truncate(20_000)
    assert str(file) in error_line(OSError, load_backbone, vgg, file)
    assert same(before, vgg.state_dict())


def test_imagenet_comes_from_the_cache_or_not_at_all(vgg, monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise urllib.error.URLError("Temporary failure in name resolution")

    cached = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    cached.parent.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    torch.save({f"features.{name}": tensor for name, tensor in vgg.features.state_dict().items()}, cached)
    model = build_model("vgg", pretrained=True)
    cached.unlink()
    assert same(vgg.features.state_dict(), model.features.state_dict())
    line = error_line(OSError, build_model, "vgg", True)
    for text in ("vgg19-dcbb9e9d.pth", "Temporary failure", "--backbone-weights PATH", str(tmp_path)):
        assert text in line
    cached.write_bytes(b"cut short")
    assert "--backbone-weights PATH" in error_line(OSError, build_model, "vgg", True)


@pytest.mark.parametrize(
    "key, rename, removed",
    [
        (None, lambda name: f"module.{name}", "module."),
        ("model_state_dict", lambda name: name, ""),
        ("state_dict", lambda name: f"model.{name}", "model."),
        ("model", lambda name: f"module._orig_mod.model.{name}", "module., _orig_mod., model."),
        ("model_state_dict", lambda name: name.replace("features.", "features._orig_mod."), "_orig_mod."),
    ],
)
def test_checkpoints_of_all_kinds_are_loaded_without_the_prefixes_of_wrappers(vgg, file, capsys, rename, removed, key):
    state = snapshot(vgg)
    renamed = {rename(name): tensor for name, tensor in state.items()}
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(3))]).state_dict()
    torch.save({key: renamed, "epoch": 3, "optimizer_state_dict": optimizer} if key else renamed, file)
    with torch.no_grad():
        for parameter in vgg.parameters():
            parameter.add_(1)
    load_weights(vgg, file)
    assert same(state, vgg.state_dict())
    line = f"{file}: {removed} before the names of its layers is taken off\n" if removed else ""
    assert capsys.readouterr().err == line


def test_a_wrapped_checkpoint_still_describes_itself(vgg, file):
    state = OrderedDict((f"_orig_mod.{name}", tensor) for name, tensor in vgg.state_dict().items())
    save_weights(file, state, {"model_name": "vgg", "topk": 0.2})
    assert describe(read_checkpoint(file)) == {"model_name": "vgg", "topk": 0.2}
