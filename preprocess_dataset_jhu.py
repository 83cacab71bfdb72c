"""Prepare JHU-Crowd++ for training.

    python preprocess_dataset_jhu.py --input-dataset-path P --output-dataset-path P

P/train, P/val and P/test each hold images/0001.jpg and gt/0001.txt. The third column of a train npy is the head's height.
"""

from __future__ import annotations

from datasets.raw.annotations import find_jhu, read_jhu
from datasets.raw.preprocess import Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from utils.cli import run_script


def main() -> int:
    """Prepare the three splits as they are given."""
    parser = make_preprocess_parser("Prepare JHU-Crowd++ for training.", Settings(512, 2048, quality=95))
    arguments = parse_preprocess_arguments(parser)

    split, annotations, problems = {}, {}, []
    for name in ("train", "val", "test"):
        pairs, single = find_jhu(arguments.input_dataset_path / name)
        split[name] = list(pairs)
        annotations |= pairs
        problems += single
    return prepare(arguments, split, annotations, read_jhu, problems, "jhu")


if __name__ == "__main__":
    run_script(main)
