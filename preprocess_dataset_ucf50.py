"""Prepare one fold of UCF_CC_50 (Idrees et al., CVPR 2013) for training.

    python preprocess_dataset_ucf50.py --fold 1 --input-dataset-path P --output-dataset-path P

P, or UCF_CC_50 in it, holds 1.jpg with 1_ann.mat to 50.jpg with 50_ann.mat. The data set is published with five-fold cross
validation: fold k tests on images 10 k - 9 to 10 k, and trains on the other forty, of which a tenth becomes val. Results are means
over the five folds, so each wants an output folder of its own.
"""

from __future__ import annotations

from datasets.raw.annotations import FOLDS, find_ucf, fold_of, read_ucf
from datasets.raw.preprocess import Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.raw.splits import add_split_options, split_train_val
from utils.cli import run_script


def main() -> int:
    """Find the images, set the fold's aside for test, divide the others into train and val, and prepare all three."""
    parser = make_preprocess_parser("Prepare one fold of UCF_CC_50 for training.", Settings(512, 2048))
    folds = range(1, FOLDS + 1)
    parser.add_argument("--fold", type=int, choices=folds, required=True, help="whose images are for test")
    add_split_options(parser, "the images that are not for test")
    arguments = parse_preprocess_arguments(parser)
    source = arguments.input_dataset_path
    folder = source / "UCF_CC_50" if (source / "UCF_CC_50").is_dir() else source

    annotations, problems = find_ucf(folder)
    test = [image for image in annotations if fold_of(image) == arguments.fold]
    split = split_train_val([image for image in annotations if image not in test], arguments)
    split["test"] = test
    return prepare(arguments, split, annotations, read_ucf, problems, "ucf50")


if __name__ == "__main__":
    run_script(main)
