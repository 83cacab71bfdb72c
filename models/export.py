"""Write a trained network for other programs, as ONNX or safetensors.

    python -m models.export --save-path runs/qnrf_vgg --format onnx --out vgg.onnx

The network of an ONNX file takes ``image``, normalised RGB float32 [B, 3, H, W] of any batch and size (of sides that are no
multiples of 16 the rest goes uncounted, as in PyTorch), and returns ``density`` float32 [B, 1, H / 8, W / 8], whose sum is the
count. Before a file appears it is run beside PyTorch on three sizes. examples/onnx_count.py counts with it.
"""

from __future__ import annotations

import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import MODELS, load_model, weights_file
from utils.cli import run_script
from utils.config import make_parser
from utils.files import atomic_write, make_folder
from utils.training.run_folder import DESCRIPTION

CHECKED = ((128, 192), (512, 512), (384, 256))  # height, width, pixels; 512 is the published window
TOLERANCE = 1e-4  # largest difference from PyTorch, as a share of the largest cell
OPSET = 18
Run = Callable[
    [torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]
]  # image -> density, in-degree indexes of vgg_trans
NEEDS = {"onnx": ("onnx", "onnxruntime"), "safetensors": ("safetensors",)}  # packages


class Exported(nn.Module):
    """A network that gives the density alone, and whose graph a trace keeps for any size; ``network`` is changed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        if hasattr(network, "encoder"):
            network.encoder.in_degree_index = traceable_in_degree_index

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.network(image).density


@torch.no_grad()
def traceable_in_degree_index(tokens: torch.Tensor, topk: float, usenum: int) -> torch.Tensor:
    """`models.vgg_trans.in_degree_index` in operations that a trace keeps for any number of tokens.

    The number of neighbours k = max(1, int(topk L)) would be written into the trace as a constant. Here ranks 1 .. L are
    compared with topk L instead, in double precision as Python computes it; distances are squared, which keeps their order, and
    made by one matrix product, since ONNX has no other than one of L x L x C numbers. Equally near neighbours beyond the
    k-th may be chosen differently.
    """
    tokens = tokens - tokens.mean(dim=1, keepdim=True)  # smaller numbers cancel less
    squares = tokens.square().sum(dim=-1, keepdim=True)
    distances = squares + squares.transpose(1, 2) - 2 * tokens @ tokens.transpose(1, 2)  # [B, L, L]
    ranks = torch.ones_like(distances[0, 0], dtype=torch.float64).cumsum(0)  # 1 .. L
    itself = (ranks[:, None] == ranks).to(distances.dtype)
    distances = distances * (1 - itself) + distances.amax(dim=(1, 2), keepdim=True) * itself
    order = distances.sort(dim=-1).indices
    linked = ((ranks <= topk * ranks[-1:]) | (ranks <= 1)).to(distances.dtype)
    in_degree = torch.zeros_like(distances).scatter(2, order, linked.expand_as(distances)).sum(dim=1)  # [B, L]
    return (in_degree / in_degree.amax(dim=1, keepdim=True) * (usenum - 1)).long()


def save_onnx(network: nn.Module, path: Path, description: dict[str, Any]) -> None:
    """Write ``network``, which is changed, as ONNX; ``description`` rides on its metadata as JSON under ``gst``."""
    import onnx

    axes = {"image": {0: "batch", 2: "height", 3: "width"}, "density": {0: "batch", 2: "rows", 3: "columns"}}
    names = {"input_names": ["image"], "output_names": ["density"], "dynamic_axes": axes}
    model = Exported(network).eval().requires_grad_(False)
    with warnings.catch_warnings():  # on tracing: checks of shapes are not to be in the trace; the rest is compared
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.randn(2, 3, 32, 48),), str(path), dynamo=False, opset_version=OPSET, **names)
    content = onnx.load(path)
    onnx.helper.set_model_props(content, {DESCRIPTION: json.dumps(description)})
    onnx.checker.check_model(content, full_check=True)
    onnx.save(content, path)


def to_safetensors(network: nn.Module, description: dict[str, Any]) -> bytes:
    """The weights alone, under the names of a checkpoint; ``description`` as JSON in the metadata, under ``gst``."""
    from safetensors.torch import save

    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return save(state, metadata={DESCRIPTION: json.dumps(description)})


def run_onnx(path: Path) -> Run:
    """The network of an ONNX file on the CPU, with PyTorch's number of threads."""
    import onnx
    import onnxruntime

    content = onnx.load(path)
    gathers = (node for node in content.graph.node if node.op_type == "Gather")
    indexes = [node.input[1] for node in gathers if node.input[0].endswith("near_embeddings.weight")]
    content.graph.output.extend(onnx.ValueInfoProto(name=name) for name in indexes)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        density, *values = map(torch.from_numpy, session.run(["density", *indexes], {"image": image.numpy()}))
        return density, values

    return run


def run_with_graph(network: nn.Module, image: torch.Tensor, indexes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Density of a vgg_trans with the in-degree indexes of another program in each of its layers."""
    given = iter(indexes)
    network.encoder.in_degree_index = lambda *_: next(given)
    density = network(image).density
    del network.encoder.in_degree_index  # that of the class again
    return density


@torch.no_grad()
def compare(network: nn.Module, exported: Run, sizes: Sequence[tuple[int, int]], tolerance: float) -> list[str]:
    """Run both on images of ``sizes`` (height, width) -> a line of figures for each.

    Raises ``ValueError`` where a cell differs by more than ``tolerance`` times the largest one. The graph of vgg_trans is
    discrete: where two neighbours are equally near but for rounding, any two programs may choose differently, and a token
    then has another embedding. So there the network is held to the rest: it computes again with the indexes of the other.
    """
    lines = []
    for height, width in sizes:
        image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        expected, here = _timed(lambda: network(image).density)
        (density, indexes), there = _timed(lambda: exported(image))
        difference = _difference(density, expected)
        line = f"{height} x {width}: {there:.0f} ms, PyTorch {here:.0f} ms; "
        line += f"count {float(density.sum()):.3f}, PyTorch {float(expected.sum()):.3f}; "
        line += f"largest difference {difference:.1e} of the largest cell"
        if indexes and difference > tolerance:
            difference = _difference(density, run_with_graph(network, image, indexes))
            line += f", {difference:.1e} with the same graph"
        if not difference <= tolerance:
            raise ValueError(f"{line}; more than {tolerance:g}: not written, report it with the model")
        lines.append(line)
    return lines


def _difference(density: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a share of the largest cell."""
    return float((density - expected).abs().max() / expected.abs().max())


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the milliseconds of a second call: the first one allocates."""
    call()
    started = time.perf_counter()
    return call(), 1e3 * (time.perf_counter() - started)


def require(form: str) -> None:
    """``ValueError`` where a package that a format needs is missing: none of them is in requirements.txt."""
    if missing := [package for package in NEEDS[form] if not importlib.util.find_spec(package)]:
        remedy = "pip install -r requirements-export.txt"
        raise ValueError(f"format {form}: needs the package {', '.join(missing)}: {remedy}")


def main() -> None:
    """Load, write, compare, report."""
    parser = make_parser("Write a trained network for other programs.")
    parser.prog = "python -m models.export"
    add = parser.add_argument
    add("--save-path", "--save-dir", type=Path, required=True, metavar="P", help=".pth, .tar, or a run's folder")
    add("--format", choices=tuple(NEEDS), default="onnx", help="of the file")
    add("--out", type=Path, required=True, metavar="FILE", help="the file")
    add("--model-name", choices=tuple(MODELS), help="network (default: what the file says of itself)")
    arguments = parser.parse_args()
    form, out = arguments.format, arguments.out
    require(form)
    if (out.suffix == ".safetensors") != (form == "safetensors"):
        raise ValueError(f"--out {out}: .safetensors is the suffix of --format safetensors alone")
    weights, name = weights_file(arguments.save_path), arguments.model_name
    network, metadata = load_model(weights, name)
    description = {key: value for key, value in metadata.items() if isinstance(value, (int, float, str))}
    make_folder(out.parent)
    with atomic_write(out) as file:
        if form == "safetensors":
            file.write_bytes(to_safetensors(network, description))
        else:
            save_onnx(network, file, description)
            print("\n".join(compare(load_model(weights, name)[0], run_onnx(file), CHECKED, TOLERANCE)))
    print(f"{out}: {metadata['model_name']}, {form}, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
