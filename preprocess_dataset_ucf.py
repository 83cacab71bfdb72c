"""Prepare UCF-QNRF, or any data set in its raw layout, for training.

    python preprocess_dataset_ucf.py --input-dataset-path P --output-dataset-path P

P/Train and P/Test hold img_0001.jpg with img_0001_ann.mat. Without lists of names a tenth of Train becomes val.
"""

from __future__ import annotations

from pathlib import Path

from datasets.annotations import find_ucf, read_ucf
from datasets.preprocess import Job, Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.splits import prepared_stem, split_train_val
from utils.cli import run_script
from utils.config import number
from utils.files import make_folder


def main() -> int:
    """Find the images, divide Train into train and val, and prepare all three splits."""
    parser = make_preprocess_parser("Prepare UCF-QNRF for training.", Settings(min_size=512, max_size=2048, quality=75))
    parser.add_argument("--train-list", type=Path, metavar="FILE", help="names of the train images, one a line")
    parser.add_argument("--val-list", type=Path, metavar="FILE", help="names of the val images, one a line")
    parser.add_argument(
        "--val-fraction",
        type=number(float, 0, 0.9, above=True),
        default=0.1,
        help="part of Train that becomes val, without lists",
    )
    parser.add_argument("--seed", type=number(int), default=4073, help="of the split, without lists")
    arguments, settings = parse_preprocess_arguments(parser)
    root = arguments.output_dataset_path

    annotations, problems = find_ucf(arguments.input_dataset_path / "Train")
    test_annotations, test_problems = find_ucf(arguments.input_dataset_path / "Test")
    split = split_train_val(
        list(annotations),
        make_folder(root),
        train_list=arguments.train_list,
        val_list=arguments.val_list,
        val_fraction=arguments.val_fraction,
        seed=arguments.seed,
    )
    split["test"] = list(test_annotations)
    annotations |= test_annotations
    jobs = [
        Job(image, annotation, read_ucf, root / name / f"{prepared_stem(image.stem)}.jpg", name == "train", settings)
        for name, images in split.items()
        for image in images
        if (annotation := annotations[image])
    ]
    return prepare(root, jobs, problems + test_problems, arguments.workers)


if __name__ == "__main__":
    run_script(main)
