"""Prepare part A or B of ShanghaiTech for training.

    python preprocess_dataset_sh.py --input-dataset-path P --output-dataset-path P --part A

P is part_A_final (or part_A, part_B_final, part_B) or the folder that holds it, with train_data/ and test_data/, each with
images/IMG_1.jpg and ground_truth/GT_IMG_1.mat (or ground-truth/). There is no official validation set: a tenth of train_data
becomes val, drawn with a seed, or chosen by --val-list. The test set stays what it is.
"""

from __future__ import annotations

from datasets.raw.annotations import find_sh, find_sh_part, read_sh
from datasets.raw.preprocess import Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.raw.splits import add_split_options, split_train_val
from utils.cli import run_script


def main() -> int:
    """Find the images, divide train_data into train and val, and prepare all three splits."""
    parser = make_preprocess_parser("Prepare ShanghaiTech for training.", Settings(512, 2048, quality=75))
    parser.add_argument("--part", choices=["A", "B"], help="which part, where the input path does not tell")
    add_split_options(parser, "train_data")
    arguments = parse_preprocess_arguments(parser)

    source, part = find_sh_part(arguments.input_dataset_path, arguments.part)
    annotations, problems = find_sh(source / "train_data")
    test_annotations, test_problems = find_sh(source / "test_data")
    print(
        f"part {part} of ShanghaiTech; it has no official val split: val is taken from train_data, not from test_data"
    )
    split = split_train_val(list(annotations), arguments)
    split["test"] = list(test_annotations)
    problems += test_problems
    return prepare(arguments, split, annotations | test_annotations, read_sh, problems, f"sh{part.lower()}")


if __name__ == "__main__":
    run_script(main)
