"""Prepare NWPU-Crowd for training.

    python preprocess_dataset_nwpu.py --input-dataset-path P --output-dataset-path P

P holds images/ (or images_part1/ to images_part5/), mats/0001.mat or jsons/0001.json, and train.txt, val.txt, test.txt. The
annotations of the test split are not public: its images are written without an npy.
"""

from __future__ import annotations

from datasets.raw.annotations import find_nwpu, read_nwpu
from datasets.raw.preprocess import Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.raw.splits import split_train_val
from utils.cli import run_script
from utils.files import SPLITS


def main() -> int:
    """Divide the images by the data set's own lists and prepare all three splits."""
    # How the authors encoded NWPU is not known; 95 loses least, as they did with JHU-Crowd++.
    parser = make_preprocess_parser("Prepare NWPU-Crowd for training.", Settings(384, 1920, quality=95))
    arguments = parse_preprocess_arguments(parser)

    source = arguments.input_dataset_path
    for name in SPLITS:
        setattr(arguments, f"{name}_list", source / f"{name}.txt")
    annotations, problems = find_nwpu(source)
    split = split_train_val(list(annotations), arguments)
    problems += [
        f"{image}: has neither mats/{image.stem}.mat nor jsons/{image.stem}.json; add one, or remove the image"
        for name in ("train", "val")
        for image in split[name]
        if annotations[image] is None
    ]
    print(f"the test split is not annotated: its {len(split['test'])} images are written without points")
    return prepare(arguments, split, annotations, read_nwpu, problems, "nwpu", unannotated=["test"])


if __name__ == "__main__":
    run_script(main)
