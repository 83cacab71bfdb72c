"""Prepare UCF-QNRF, or any data set in its raw layout, for training.

    python preprocess_dataset_ucf.py --input-dataset-path P --output-dataset-path P

P/Train and P/Test hold img_0001.jpg with img_0001_ann.mat. Without lists of names a tenth of Train becomes val.
"""

from __future__ import annotations

from datasets.raw.annotations import find_ucf, read_ucf
from datasets.raw.preprocess import Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.raw.splits import add_split_options, split_train_val
from utils.cli import run_script


def main() -> int:
    """Find the images, divide Train into train and val, and prepare all three splits."""
    parser = make_preprocess_parser("Prepare UCF-QNRF for training.", Settings(min_size=512, max_size=2048, quality=75))
    add_split_options(parser, "Train")
    arguments = parse_preprocess_arguments(parser)

    annotations, problems = find_ucf(arguments.input_dataset_path / "Train")
    test_annotations, test_problems = find_ucf(arguments.input_dataset_path / "Test")
    split = split_train_val(list(annotations), arguments)
    split["test"] = list(test_annotations)
    return prepare(arguments, split, annotations | test_annotations, read_ucf, problems + test_problems, "qnrf")


if __name__ == "__main__":
    run_script(main)
