"""Prepare JHU-Crowd++ for training.

    python preprocess_dataset_jhu.py --input-dataset-path P --output-dataset-path P

P/train, P/val and P/test each hold images/0001.jpg and gt/0001.txt. The third column of a train npy is the head's height.
"""

from __future__ import annotations

from datasets.raw.annotations import find_jhu, read_jhu
from datasets.raw.preprocess import Settings, make_jobs, make_preprocess_parser, parse_preprocess_arguments, prepare
from utils.cli import run_script
from utils.files import make_folder


def main() -> int:
    """Prepare the three splits as they are given."""
    parser = make_preprocess_parser("Prepare JHU-Crowd++ for training.", Settings(512, 2048, quality=95))
    arguments, settings = parse_preprocess_arguments(parser)

    split, annotations, problems = {}, {}, []
    for name in ("train", "val", "test"):
        found, single = find_jhu(arguments.input_dataset_path / name)
        split[name] = list(found)
        annotations |= found
        problems += single
    root = make_folder(arguments.output_dataset_path)
    jobs = make_jobs(root, split, annotations, read_jhu, settings)
    return prepare(root, jobs, problems, arguments.workers, "jhu")


if __name__ == "__main__":
    run_script(main)
