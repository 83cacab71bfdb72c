"""Bad inputs of all kinds: how each is made and the command that meets it. ``messages.yml`` holds what it must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from raw_data import make_jhu, make_nwpu, write
from spoil import (
    POINT,
    POLYLINE,
    Foreign,
    Work,
    bomb,
    changed,
    coco,
    config,
    cut,
    deep,
    gaussian_rows,
    kernel_array,
    kernels,
    link,
    mat,
    mine,
    mine_mat,
    nothing,
    npy_header,
    params,
    png,
    save,
    save_png,
    task,
    text,
    via3,
)
from training_runs import Tiny


class Case(NamedTuple):
    name: str
    command: str
    spoil: Callable[[Work], object]


PREPARE = (
    "preprocess_dataset_ucf.py --input-dataset-path {d}/raw --output-dataset-path {d}/out --min-size 32 --workers 1"
)
JHU = "preprocess_dataset_jhu.py --input-dataset-path {d}/jhu --output-dataset-path {d}/out --min-size 32 --workers 1"
NWPU = (
    "preprocess_dataset_nwpu.py --input-dataset-path {d}/nwpu --output-dataset-path {d}/out --min-size 32 --workers 1"
)
MINE = "preprocess_dataset_points.py --input-dataset-path {d}/mine --output-dataset-path {d}/out --workers 1 --unannotated empty --format "
SPLAT = "2dgs_counting_1gs_gsplat.py --root-path {d}/data --num-epochs 5 --workers 1"
CLEAN = "GS2D/process_gaussians.py --root-path {d}/data"
KERNELS = "GS2D/build_kernels.py --root-path {d}/data --workers 1"
TRAIN = (
    "train_gs.py --data-dir {d}/data --device cpu --backbone-weights none --crop-size 64 --num-workers 0 --epochs 1 "
    "--save-dir {d}/run"
)
STORED = TRAIN + " --kernels h5"
TEST = "test.py --data-dir {d}/data --split val --device cpu --save-path {d}/best_model.pth"


IMAGES = [
    Case("an empty image", PREPARE, lambda w: w.raw_image.write_bytes(b"")),
    Case("an image cut off", PREPARE, lambda w: cut(w.raw_image)),
    Case("a web page under an image's name", PREPARE, lambda w: text(w.raw_image)),
    Case("16 bits a channel", PREPARE, lambda w: save_png(w.raw_image, np.zeros((40, 40), np.uint16))),
    Case("900 megapixels", PREPARE, lambda w: w.raw_image.write_bytes(png(30000, 30000))),
    Case("more pixels than its bytes can hold", PREPARE, lambda w: w.raw_image.write_bytes(png(5000, 5000))),
    Case("PostScript under an image's name", PREPARE, lambda w: w.raw_image.write_text("%!PS-Adobe-3.0 EPSF-3.0\n")),
    Case("a dangling link", PREPARE, lambda w: link(w.raw_image)),
    Case("too long for a JPEG", PREPARE, lambda w: save_png(w.raw_image, np.zeros((1, 4000, 3), np.uint8))),
    Case(
        "two images of one name",
        PREPARE,
        lambda w: save_png(w.raw_image.with_suffix(".png"), np.zeros((9, 9, 3), np.uint8)),
    ),
    Case("an image without annotation", PREPARE, lambda w: w.mat.unlink()),
    Case("a prepared image cut off", TRAIN, lambda w: cut(w.image)),
    Case("a prepared image that is empty, to fit", SPLAT, lambda w: (w.gs.unlink(), w.image.write_bytes(b""))),
    Case("a prepared image cut off, to build a kernel for", KERNELS, lambda w: w.image.write_bytes(png(20000, 10000))),
    Case("an image smaller than the crop", TRAIN + " --crop-size 128", nothing),
    Case("a folder without images", TRAIN, lambda w: [path.unlink() for path in (w.data / "val").glob("*.jpg")]),
]
ANNOTATIONS = [
    Case("mat: another key", PREPARE, lambda w: mat(w, points=np.zeros((2, 2)))),
    Case("mat: text", PREPARE, lambda w: text(w.mat)),
    Case("mat: empty", PREPARE, lambda w: w.mat.write_bytes(b"")),
    Case("mat: cut off", PREPARE, lambda w: cut(w.mat)),
    Case("mat: version 7.3", PREPARE, lambda w: w.mat.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))),
    Case("mat: not finite", PREPARE, lambda w: mat(w, annPoints=np.array([[1, 2], [np.nan, 3]]))),
    Case("mat: three columns", PREPARE, lambda w: mat(w, annPoints=np.zeros((4, 3)))),
    Case("mat: words", PREPARE, lambda w: mat(w, annPoints="none")),
    Case("mat: of no image", PREPARE, lambda w: w.raw_image.unlink()),
    Case("jhu: five values", JHU, lambda w: write(make_jhu(w.folder / "jhu") / "train/gt/0002.txt", "1 2 3 4 5\n")),
    Case("jhu: a word", JHU, lambda w: write(make_jhu(w.folder / "jhu") / "train/gt/0002.txt", "1 two 3 4 5 6\n")),
    Case(
        "jhu: a negative size", JHU, lambda w: write(make_jhu(w.folder / "jhu") / "train/gt/0002.txt", "1 2 3 -4 5 6\n")
    ),
    Case(
        "nwpu: an unknown image in a list",
        NWPU,
        lambda w: write(make_nwpu(w.folder / "nwpu") / "val.txt", "0099 0 1\n"),
    ),
    Case("nwpu: an image in two lists", NWPU, lambda w: write(make_nwpu(w.folder / "nwpu") / "val.txt", "0001 0 1\n")),
    Case("csv: a word", MINE + "csv", mine("a.csv", "x,y\n1,two\n")),
    Case("csv: no columns x and y", MINE + "csv", mine("a.csv", "left,top\n1,2\n")),
    Case("csv: a cell too many", MINE + "csv", mine("a.csv", "x,y\n1,2,3\n")),
    Case("csv: not UTF-8", MINE + "csv", mine("a.csv", b"x,y\n\xff\xfe,2\n")),
    Case("json: not valid", MINE + "json", mine("a.json", "[[1, 2],")),
    Case("json: nested too deeply", MINE + "json", mine("a.json", "[" * 100_000)),
    Case("json: a key twice", MINE + "json", mine("a.json", '{"points": [], "points": []}')),
    Case("json: infinite", MINE + "json", mine("a.json", "[[1, 1e999]]")),
    Case("json: three numbers", MINE + "json", mine("a.json", "[[1, 2, 3]]")),
    Case("coco: no list of images", MINE + "coco", mine("a.json", {"annotations": []})),
    Case("yolo: four numbers", MINE + "yolo", mine("a.txt", "0 0.5 0.5 0.1\n")),
    Case(
        "labelme: an unknown shape",
        MINE + "labelme",
        mine("a.json", {"shapes": [{"shape_type": "line", "points": [[1, 2]], "label": "a"}]}),
    ),
    Case(
        "via: an unknown shape",
        MINE + "via",
        mine("a.json", {"a": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "polyline"}}]}}),
    ),
    Case("no annotation at all", MINE + "csv", nothing),
]
FIELD = [
    Case("coco: no annotation", MINE + "coco", mine("a.json", coco([]))),
    Case("yolo: empty files", MINE + "yolo", lambda w: [write(w.mine / f"{name}.txt", "") for name in "abc"]),
    Case("csv: a header without y", MINE + "csv", mine("a.csv", "x,label\n1,a\n")),
    Case("csv: a corner without a size", MINE + "csv", mine("a.csv", "left,top,label\n1,2,a\n")),
    Case("csv: parts of the image", MINE + "csv", mine("a.csv", "x,y\n0.1,0.2\n0.3,0.4\n0.5,0.6\n0.7,0.8\n")),
    Case("csv: no such label column", MINE + "csv --label-attribute who", mine("a.csv", "x,y,label\n1,2,a\n")),
    Case("a label column where labels are known", MINE + "coco --label-attribute who", nothing),
    Case("coco: an unknown id", MINE + "coco", mine("a.json", coco([{"image_id": "7", "bbox": [1, 2, 3, 4]}]))),
    Case(
        "labelme: of an image of another size",
        MINE + "labelme",
        mine("a.json", {**POINT, "imageWidth": 9, "imageHeight": 7}),
    ),
    Case("via: version 3, a line", MINE + "via", mine("a.json", via3([5, 1, 2, 3, 4]))),
    Case("cvat: cut off", MINE + "cvat", mine("a.xml", "<annotations><image")),
    Case(
        "cvat: an entity", MINE + "cvat", mine("a.xml", '<!DOCTYPE a [<!ENTITY e "x">]><annotations>&e;</annotations>')
    ),
    Case("cvat: for video", MINE + "cvat", mine("a.xml", "<annotations><track id='0'/></annotations>")),
    Case("cvat: Pascal VOC", MINE + "cvat", mine("a.xml", "<annotation/>")),
    Case("cvat: a polyline", MINE + "cvat", mine("a.xml", f"<annotations>{POLYLINE}</annotations>")),
    Case("label studio: a brush", MINE + "labelstudio", mine("a.json", [task({"type": "brushlabels", "value": {}})])),
    Case("label studio: nothing but data", MINE + "labelstudio", mine("a.json", [{"data": {"image": "a.jpg"}}])),
    Case("label studio: two annotations", MINE + "labelstudio", mine("a.json", [task({}, 2)])),
    Case("xy: three numbers", MINE + "xy", mine("a.txt", "1 2\n3 4 5\n")),
    Case("pnt: no points", MINE + "pnt", mine("a.pnt", {"classes": []})),
    Case(
        "mat: nothing that looks like points",
        MINE + "mat",
        lambda w: mine_mat(w, a=np.zeros((2, 2)), b=np.ones((1, 1))),
    ),
    Case("auto: nothing", MINE + "auto", nothing),
    Case(
        "auto: several formats",
        MINE + "auto",
        lambda w: (write(w.mine / "a.txt", "1 2\n"), write(w.mine / "b.csv", "x,y\n")),
    ),
    Case("a HEIC photograph called jpg", PREPARE, lambda w: w.raw_image.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))),
    Case("16 bits a channel, in color", PREPARE, lambda w: w.raw_image.write_bytes(deep())),
    Case(
        "nothing but HEIC photographs",
        MINE + "csv",
        lambda w: [p.rename(p.with_suffix(".heic")) for p in w.mine.iterdir()],
    ),
]
CONFIGURATION = [
    Case("yml: missing", TRAIN + " --config {d}/none.yml", nothing),
    Case("yml: not valid", TRAIN + " --config {d}/config.yml", config("lr: [1\n")),
    Case("yml: an alias", TRAIN + " --config {d}/config.yml", config("epochs: &n 3\nval_start: *n\n")),
    Case("yml: a list", TRAIN + " --config {d}/config.yml", config("- lr\n")),
    Case("yml: an unknown key", TRAIN + " --config {d}/config.yml", config("learning_rat: 1\nlr_schedul: constant\n")),
    Case("yml: a word for a number", TRAIN + " --config {d}/config.yml", config("lr: fast\n")),
    Case("yml: true for a number", TRAIN + " --config {d}/config.yml", config("batch_size: true\n")),
    Case("yml: a list for one value", TRAIN + " --config {d}/config.yml", config("lr: [1, 2]\n")),
    Case("yml: no value", TRAIN + " --config {d}/config.yml", config("lr:\n")),
    Case("yml: a number for a switch", TRAIN + " --config {d}/config.yml", config("compile: 1\n")),
    Case("yml: an impossible value", TRAIN + " --config {d}/config.yml", config("epochs: 0\n")),
    Case("yml: not one of the choices", TRAIN + " --config {d}/config.yml", config("loss: l2\n")),
    Case("yml: an unknown key of the fit", SPLAT + " --config {d}/config.yml", config("num_epoch: 3\n")),
]
H5 = [
    Case("gs_params: text", TRAIN, lambda w: text(w.gs)),
    Case("gs_params: cut off", TRAIN, lambda w: cut(w.gs)),
    Case("gs_params: missing", TRAIN, lambda w: w.gs.unlink()),
    Case("gs_params: without params", TRAIN, params),
    Case("gs_params: seven columns", TRAIN, lambda w: params(w, np.ones((6, 7), np.float32))),
    Case("gs_params: words", TRAIN, lambda w: params(w, np.full((6, 8), b"one"))),
    Case(
        "gs_params: 40 gigabytes",
        TRAIN,
        lambda w: params(w, shape=(1_250_000_000, 8), dtype="f4", chunks=(1000, 8), compression="gzip"),
    ),
    Case("gs_params: of other points", TRAIN, lambda w: params(w, gaussian_rows(w)[1:])),
    Case("gs_params: a negative scale", TRAIN, lambda w: params(w, changed(gaussian_rows(w), 1, 2, -3.0))),
    Case("gs_params: an infinite scale", KERNELS, lambda w: params(w, changed(gaussian_rows(w), 1, 3, np.inf))),
    Case("gs_params: moved", SPLAT, lambda w: params(w, gaussian_rows(w) + np.float32([9, 9, 0, 0, 0, 0, 0, 0]))),
    Case("gs_params: text, to clean", CLEAN, lambda w: text(w.gs)),
    Case("kernel: missing", STORED, nothing),
    Case("kernel: text", STORED, lambda w: (kernels(w, lambda file: None), text(w.kernel))),
    Case("kernel: without data", STORED, lambda w: kernels(w, lambda file: file.__delitem__("data"))),
    Case("kernel: row starts that fall", STORED, kernel_array("indptr", 1, 10**6)),
    Case("kernel: a cell outside", STORED, kernel_array("indices", 0, 10**6)),
    Case("kernel: not finite", STORED, kernel_array("data", 0, np.nan)),
    Case("kernel: another shape", STORED, kernel_array("shape", 1, 7)),
    Case("kernel: a grid of words", STORED, lambda w: kernels(w, lambda file: file.attrs.__setitem__("grid", "ab"))),
    Case(
        "kernel: of other Gaussians",
        STORED,
        lambda w: kernels(w, lambda file: file.attrs.__setitem__("params_hash", "0")),
    ),
    Case("kernel: of other parameters", STORED + " --cut-off 2", lambda w: kernels(w, lambda file: None)),
]
NPY = [
    Case("npy: missing", TRAIN, lambda w: w.npy.unlink()),
    Case("npy: text", TRAIN, lambda w: text(w.npy)),
    Case("npy: empty", TRAIN, lambda w: w.npy.write_bytes(b"")),
    Case("npy: cut off", TRAIN, lambda w: cut(w.npy)),
    Case("npy: pickled objects", TRAIN, lambda w: np.save(w.npy, np.array([Foreign()], object))),
    Case("npy: four columns", TRAIN, lambda w: np.save(w.npy, np.zeros((6, 4)))),
    Case("npy: one dimension", TRAIN, lambda w: np.save(w.npy, np.zeros(6))),
    Case("npy: not finite", TRAIN, lambda w: np.save(w.npy, np.array([[1, 2, 3], [4, np.inf, 6]]))),
    Case("npy: words", TRAIN, lambda w: np.save(w.npy, np.array([["a", "b"]]))),
    Case("npy: 40 gigabytes", TRAIN, lambda w: w.npy.write_bytes(npy_header("(10000000000, 1)"))),
    Case("npy: several arrays", TRAIN, lambda w: np.savez(w.npy.open("wb"), a=np.zeros((1, 2)))),
]
CHECKPOINTS = [
    Case("checkpoint: missing", TEST, lambda w: w.weights.unlink()),
    Case("checkpoint: text", TEST, lambda w: text(w.weights)),
    Case("checkpoint: empty", TEST, lambda w: w.weights.write_bytes(b"")),
    Case("checkpoint: cut off", TEST, lambda w: cut(w.weights)),
    Case("checkpoint: foreign code", TEST, save({"a": Foreign()})),
    Case("checkpoint: a whole network", TEST, save(torch.nn.Linear(2, 2))),
    Case("checkpoint: numbers", TEST, save({"a": 3})),
    Case("checkpoint: of another network", TEST, save({"fc.weight": torch.zeros(2, 2)})),
    Case("checkpoint: another shape", TEST, save({**Tiny().state_dict(), "layers.0.bias": torch.zeros(9)})),
    Case("checkpoint: 200 megabytes of zeros, packed", TEST, bomb),
    Case(
        "checkpoint: an impossible topk",
        TEST,
        save({"model_state_dict": Tiny().state_dict(), "arguments": {"topk": "x"}}),
    ),
    Case(
        "checkpoint: another training state",
        TRAIN + " --resume {d}/best_model.pth",
        save({"model_state_dict": Tiny().state_dict(), "optimizer_state_dict": {"state": 3}, "epoch": 1}),
    ),
    Case(
        "checkpoint: no epoch",
        TRAIN + " --resume {d}/best_model.pth",
        save(
            {
                "model_state_dict": Tiny().state_dict(),
                "optimizer_state_dict": torch.optim.Adam(Tiny().parameters()).state_dict(),
            }
        ),
    ),
]
COMMAND_LINE = [
    Case("no option that is needed", "train_gs.py", nothing),
    Case("an unknown option", TRAIN + " --bach-size 3", nothing),
    Case("an abbreviated option", TRAIN + " --batch 3", nothing),
    Case("a word for a number", TRAIN + " --lr fast", nothing),
    Case("a fraction for a whole number", TRAIN + " --batch-size 1.5", nothing),
    Case("no epochs", TRAIN + " --epochs 0", nothing),
    Case("not a number", TRAIN + " --lr nan", nothing),
    Case("a crop that does not fit the stride", TRAIN + " --crop-size 100", nothing),
    Case("an unknown device", TRAIN + " --device tpu", nothing),
    Case("a GPU that is not there", TRAIN + " --device 99", nothing),
    Case("an unknown network", TRAIN + " --model-name resnet", nothing),
    Case("kernels for a loss without", TRAIN + " --kernels h5 --loss bl", nothing),
    Case("scales that contradict", KERNELS + " --post-max 5", nothing),
    Case("half precision without a GPU", TRAIN + " --precision 16-mixed", nothing),
    Case("a share of too few", SPLAT + " --shard 5/4", nothing),
    Case("no such prepared folder", SPLAT + " --root-path {d}/none", nothing),
    Case("nothing fitted to clean", CLEAN + " --gs-dir {d}/none", nothing),
    Case("sizes the wrong way round", PREPARE + " --max-size 16", nothing),
    Case("the output in the input", PREPARE + " --output-dataset-path {d}/raw/out", nothing),
    Case("no such raw folder", PREPARE + " --input-dataset-path {d}/none", nothing),
    Case("a file for a folder", PREPARE + " --output-dataset-path {d}/config.yml", config("")),
    Case("no such list", PREPARE + " --train-list {d}/none.txt", nothing),
    Case("an unknown format", MINE + "voc", nothing),
    Case("a checkpoint that is not there, to go on from", TRAIN + " --resume {d}/none.tar", nothing),
    Case("no data set to look at", "datasets/check.py --quick --data-dir {d}/none", nothing),
]
CASES = IMAGES + ANNOTATIONS + FIELD + CONFIGURATION + H5 + NPY + CHECKPOINTS + COMMAND_LINE
