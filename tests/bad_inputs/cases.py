"""Bad inputs of all kinds: how each is made, the command that meets it, and the file or option and the remedy that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from raw_data import write
from spoil import Foreign, Work, bomb, coco, cut, kernel_array, kernels, mine, one_scale, params, save, save_png, text
from training_runs import Tiny

Spoil = Callable[[Work], object]


class Case(NamedTuple):
    name: str
    command: str
    spoil: Spoil
    words: tuple[str, ...]  # what the line must name, in this order; {d} is the folder of the case
    code: int  # 2 is wrong usage, 1 failed work


def group(command: str, where: str, cases: Mapping[str, tuple], code: int = 1) -> list[Case]:
    """Cases of one command and one file: name -> how it is spoiled, words of the line [, further options]."""
    return [
        Case(name, " ".join([command, *more]), spoil, (*([where] if where else []), *words.split("|")), code)
        for name, (spoil, words, *more) in cases.items()
    ]


def nothing(work: Work) -> None:
    """The command line alone is wrong."""


RAW = "--input-dataset-path {d}/%s --output-dataset-path {d}/out --workers 1"
PREPARE = f"preprocess_dataset_ucf.py {RAW % 'raw'} --min-size 32"
MINE = f"preprocess_dataset_points.py {RAW % 'mine'} --unannotated empty --format "
SPLAT = "2dgs_counting_1gs_gsplat.py --root-path {d}/data --num-epochs 5 --workers 1"
CLEAN = "GS2D/process_gaussians.py --root-path {d}/data"
KERNELS = "GS2D/build_kernels.py --root-path {d}/data --workers 1"
TRAIN = (
    "train_gs.py --data-dir {d}/data --device cpu --backbone-weights none --crop-size 64 --num-workers 0 --epochs 1 "
)
TRAIN += "--save-dir {d}/run"
STORED = TRAIN + " --kernels h5"
TEST = "test.py --data-dir {d}/data --split val --device cpu --save-path {d}/best_model.pth"
CONFIG = TRAIN + " --config {d}/config.yml"
RESUME = TRAIN + " --resume {d}/best_model.pth"

NO_IMAGE, POINTS, FITTED, BUILT = (
    "cannot read this image|get the file again",
    "{d}/data/train/IMG_0000.npy",
    "fit",
    "build",
)
STATE = {"model_state_dict": Tiny().state_dict()}
POINT = {"shapes": [{"shape_type": "point", "points": [[1, 2]], "label": "a"}], "imageWidth": 9, "imageHeight": 7}


def config(contents: str) -> Spoil:
    return lambda work: work.config.write_text(contents)


IMAGES = {
    "an empty image": (lambda w: w.raw_image.write_bytes(b""), NO_IMAGE),
    "PostScript under an image's name": (lambda w: w.raw_image.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), NO_IMAGE),
    "16 bits a channel": (lambda w: save_png(w.raw_image, np.zeros((40, 40), np.uint16)), "save it with 8 bits"),
    "HEIC": (lambda w: w.raw_image.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)), "convert it to JPEG"),
    "a dangling link": (lambda w: (w.raw_image.unlink(), w.raw_image.symlink_to("nowhere")), "check the path"),
    "too long for a JPEG": (lambda w: save_png(w.raw_image, np.zeros((1, 4000, 3), np.uint8)), "--min-size"),
    "an image without annotation": (lambda w: w.mat.unlink(), "img_0001_ann.mat is missing|add it"),
}
MAT = {
    "mat: text": (lambda w: text(w.mat), "not a readable .mat file|get it again"),
    "mat: of no image": (lambda w: w.raw_image.unlink(), "img_0001.jpg is missing|remove the annotation"),
}
OWN = {  # what readers refuse is in test_point_formats; here are the ways by which it comes out, and what is refused of a whole
    "csv: a word": (mine("a.csv", "x,y\n1,two\n"), "a.csv: line 2|'two'|write numbers", "csv"),
    "csv: not UTF-8": (mine("a.csv", b"x,y\n\xff\xfe,2\n"), "a.csv|save it as UTF-8", "auto"),
    "csv: parts of the image": (mine("a.csv", "x,y\n.1,.2\n.3,.4\n.5,.6\n.7,.8\n"), "0..1|multiply x by", "csv"),
    "csv: no label column": (mine("a.csv", "x,y,a\n1,2,a\n"), "--label-attribute who", "csv --label-attribute who"),
    "a label column where labels are known": (nothing, "", "coco --label-attribute who"),
    "coco: no list of images": (mine("a.json", {"annotations": []}), "a.json: no list 'images'|check --format", "coco"),
    "coco: no annotation": (mine("a.json", coco([])), "a.json|take --format", "coco"),
    "coco: an unknown id": (
        mine("all.json", coco([{"image_id": "7"}])),
        "error: {d}/mine/all.json|'7'|remove the entry",
        "auto",
    ),
    "labelme: of another image": (mine("a.json", POINT), "a.json|9 x 7|annotate the image", "labelme"),
    "yolo: empty files": (lambda w: [write(w.mine / f"{n}.txt", "") for n in "abc"], "--format", "yolo"),
    "cvat: cut off": (mine("a.xml", "<annotations><image"), "a.xml: not valid XML|export it from CVAT again", "cvat"),
    "mat: nothing like points": (lambda w: write(w.mine / "a.mat", w.mat.read_bytes()[:130]), "a.mat|again", "mat"),
    "no annotation at all": (nothing, "csv|check --format", "csv"),
    "auto: nothing": (nothing, "choose with --format", "auto"),
    "auto: several formats": (
        lambda w: (write(w.mine / "a.txt", "1 2\n"), write(w.mine / "b.csv", "x,y\n")),
        "b.csv|a.txt|choose with --format",
        "auto",
    ),
}
CONFIGURATION = {
    "yml: not valid": (config("lr: [1\n"), "--config {d}/config.yml|not valid YAML"),
    "yml: a list": (config("- lr\n"), "--config {d}/config.yml|list"),
    "yml: an unknown key": (
        config("learning_rat: 1\nlr_schedul: constant\n"),
        "--config {d}/config.yml|'learning_rat'|known keys",
    ),
    "yml: a misspelt key": (
        config("lr_schedul: constant\n"),
        "--config {d}/config.yml|'lr_schedul'|did you mean lr_schedule?",
    ),
    "yml: a word for a number": (config("lr: fast\n"), "--lr: 'fast'"),
    "yml: true for a number": (config("batch_size: true\n"), "--batch-size: 'True'"),
    "yml: a list for one value": (config("lr: [1, 2]\n"), "--config {d}/config.yml|lr: [1, 2]"),
    "yml: no value": (config("lr:\n"), "--config {d}/config.yml|lr: None is no value"),
    "yml: a number for a switch": (config("compile: 1\n"), "--config {d}/config.yml|compile: 1|true nor false"),
    "yml: not one of the choices": (config("loss: l2\n"), "--loss: invalid choice: 'l2'|'gst', 'bl'"),
}
GAUSSIANS = {
    "gs_params: text": (lambda w: text(w.gs), FITTED),
    "gs_params: missing": (lambda w: w.gs.unlink(), "2dgs_counting_1gs_gsplat.py --root-path {d}/data"),
    "gs_params: of other points": (params(lambda rows: rows[1:]), "5 Gaussians|6 points|delete"),
    "gs_params: a negative scale": (params(one_scale(-3)), "row 1|-3.0|delete"),
    "gs_params: an infinite scale": (params(one_scale(np.inf)), "row 1|inf|delete"),
}
STORED_KERNELS = {
    "kernel: missing": (lambda w: w.kernel.unlink(), "IMG_0000_kernel.h5|GS2D/build_kernels.py --root-path {d}/data"),
    "kernel: text": (lambda w: text(w.kernel), BUILT),
    "kernel: not finite": (kernel_array("data", 0, np.nan), BUILT),
    "kernel: of other Gaussians": (kernels(lambda file: file.attrs.__setitem__("params_hash", "0")), BUILT),
    "kernel: of other parameters": (nothing, "cut_off 3.0 instead of 2.0|build_kernels.py", "--cut-off 2"),
}
NPY = {
    "npy: text": (lambda w: text(w.npy), "run preprocess_dataset_"),
    "npy: pickled objects": (lambda w: np.save(w.npy, np.array([Foreign()], object)), "run preprocess_dataset_"),
    "npy: one dimension": (lambda w: np.save(w.npy, np.zeros(6)), "(6,)|run preprocess_dataset_"),
}
CHECKPOINTS = {
    "checkpoint: missing": (lambda w: w.weights.unlink(), "check the path"),
    "checkpoint: text": (lambda w: text(w.weights), "fetch or save it again"),
    "checkpoint: cut off": (lambda w: cut(w.weights), "fetch or save it again"),
    "checkpoint: foreign code": (save({"a": Foreign()}), "foreign code|save model.state_dict()"),
    "checkpoint: megabytes of zeros, packed": (bomb, "claims 20,000,|fetch or save it again"),
}
TRAINING = {
    "an unknown option": (nothing, "--bach-size 3", "--bach-size 3"),
    "an abbreviated option": (nothing, "--batch 3", "--batch 3"),
    "a word for a number": (nothing, "--lr|'fast'", "--lr fast"),
    "a crop that does not fit the stride": (nothing, "--crop-size 100|multiple of 16", "--crop-size 100"),
    "an unknown network": (nothing, "--model-name|resnet|vgg_trans", "--model-name resnet"),
    "kernels for a loss without": (nothing, "--kernels h5|--loss bl|leave it out", "--kernels h5 --loss bl"),
    "scales that contradict": (nothing, "--post-max 5|raise it or --post-min", "--post-max 5"),
    "no such configuration": (nothing, "--config {d}/none.yml|give the path", "--config {d}/none.yml"),
}
PREPARATION = {
    "two images of one name": (lambda w: w.twin.write_bytes(b""), "{d}/raw|.png|rename"),
    "the output in the input": (nothing, "{d}/raw/out|outside", "--output-dataset-path {d}/raw/out"),
    "no such raw folder": (nothing, "{d}/none|must hold", "--input-dataset-path {d}/none"),
    "a file for a folder": (config(""), "{d}/config.yml|path", "--output-dataset-path {d}/config.yml"),
    "no such list": (nothing, "{d}/none.txt|check the path", "--train-list {d}/none.txt"),
}
TRAINING_INPUTS = {
    "npy: missing": (lambda w: w.npy.unlink(), "{d}/data/train|IMG_0000.npy|preprocess"),
    "a prepared image cut off": (lambda w: cut(w.image), "{d}/data/train/IMG_0000.jpg|again"),
    "an image smaller than the crop": (nothing, "IMG_0000.jpg|96 x 80|--crop-size to 80", "--crop-size 128"),
    "a folder without images": (lambda w: w.of_val.unlink(), "{d}/data/val|check the data path"),
    "an unknown device": (nothing, "--device tpu|cpu", "--device tpu"),
    "a GPU that is not there": (nothing, "--device 99|--device cpu", "--device 99"),
    "half precision without a GPU": (nothing, "16-mixed|bf16-mixed", "--precision 16-mixed"),
    "nothing to go on from": (nothing, "{d}/none.tar|check the path", "--resume {d}/none.tar"),
}
RESUMED = {
    "checkpoint: no epoch": (save({**STATE, "optimizer_state_dict": {"param_groups": []}}), "start from a .pth"),
    "checkpoint: another training state": (
        save({**STATE, "optimizer_state_dict": {}, "epoch": 1}),
        "start from a .pth",
    ),
}
CASES = [
    *group(PREPARE, "{d}/raw/Train/img_0001.jpg", IMAGES),
    *group(PREPARE, "{d}/raw/Train/img_0001_ann.mat", MAT),
    *group(PREPARE, "", PREPARATION),
    *group(MINE, "", OWN),
    *group(CONFIG, "", CONFIGURATION, code=2),
    *group(TRAIN, "{d}/data/train/gs_params", GAUSSIANS),
    *group(STORED, "{d}/data/train/kernels", STORED_KERNELS),
    *group(TRAIN, POINTS, NPY),
    *group(TRAIN, "", TRAINING_INPUTS),
    *group(TRAIN, "", TRAINING, code=2),
    *group(TEST, "{d}/best_model.pth", CHECKPOINTS),
    *group(RESUME, "{d}/best_model.pth", RESUMED),
    Case("gs_params: text, to clean", CLEAN, lambda w: text(w.gs), ("IMG_0000_gs_params.h5", FITTED), 1),
    Case("gs_params: moved", SPLAT, params(lambda rows: rows + 9), ("_gs_params.h5", "pixels", "delete"), 1),
    Case("checkpoint: an impossible topk", TEST, save({**STATE, "arguments": {"topk": "x"}}), ("topk 'x'", "save"), 1),
    Case("yml: of the fit", SPLAT + " --config {d}/config.yml", config("num_epoch: 3"), ("mean num_epochs?",), 2),
    Case("no option that is needed", "train_gs.py", nothing, ("--data-dir",), 2),
    Case("a share of too few", SPLAT + " --shard 5/4", nothing, ("--shard", "5/4", "2/8"), 2),
    Case("no such prepared folder", SPLAT + " --root-path {d}/none", nothing, ("{d}/none", "check"), 1),
    Case("nothing fitted to clean", CLEAN + " --gs-dir {d}/none", nothing, ("{d}/none", "2dgs_counting"), 1),
    Case("sizes the wrong way round", PREPARE + " --max-size 16", nothing, ("--min-size 32", "--max-size 16"), 2),
    Case("an unknown format", MINE + "voc", nothing, ("--format", "voc", "cvat"), 2),
    Case("no data set to look at", "datasets/check.py --quick --data-dir {d}/none", nothing, ("{d}/none", "check"), 1),
]
