"""Prepare a folder of one's own, images with annotated points or boxes, for training.

    python preprocess_dataset_points.py --format csv --input-dataset-path P --output-dataset-path P

Images may lie in P itself or in folders; those in folders called train, val and test (in any case) stay in that split, and
without such folders, lists or fractions divide them. Annotations come in a file for each image, here IMG.jpg, or in one for
all (--annotations FILE):

    csv      IMG.csv with columns x, y; one for all: image, x, y (a row with x and y empty: nobody there)
    json     IMG.json with [[x, y], ...] or {"points": [[x, y], ...]}; one for all: {"IMG.jpg": [[x, y], ...], ...}
    coco     COCO's JSON for many images, boxes or keypoints
    yolo     IMG.txt beside the image or in labels/ where that is in images/: class x y width height, parts of the image
    labelme  IMG.json with points, rectangles, polygons or circles
    via      JSON or CSV of the VGG Image Annotator for many images

A box becomes its centre, and its size, sqrt(width * height), the third column of a train npy; all other points get the
distance to their neighbours there.
"""

from __future__ import annotations

from pathlib import Path

from datasets.raw.point_folders import FORMATS, find_images, read_annotations
from datasets.raw.preprocess import Settings, make_jobs, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.raw.splits import add_split_options, divide_folders
from utils.cli import run_script
from utils.config import number
from utils.files import make_folder


def main() -> int:
    """Find images and annotations, divide them where their folders do not, and prepare all splits."""
    parser = make_preprocess_parser("Prepare images and points of your own for training.", Settings(512, 2048))
    parser.add_argument("--format", choices=list(FORMATS), required=True, help="of the annotations")
    parser.add_argument(
        "--annotations", type=Path, metavar="PATH", help="one file for all images, or the folder of the files"
    )
    parser.add_argument("--category", nargs="+", metavar="LABEL", help="count objects of these labels only")
    parser.add_argument(
        "--unannotated",
        choices=["skip", "empty"],
        help="images without annotation: left out, or without points (default: empty for yolo, else skip)",
    )
    add_split_options(parser, "the training images")
    parser.add_argument("--test-list", type=Path, metavar="FILE", help="names of the test images, one a line")
    parser.add_argument(
        "--test-fraction",
        type=number(float, 0, 0.9),
        default=0.1,
        help="part that becomes test, without lists and folders",
    )
    parser.add_argument("--crop-size", type=number(int, 8), default=512, help="of training, for the report only")
    arguments, settings = parse_preprocess_arguments(parser)
    source, root = arguments.input_dataset_path, arguments.output_dataset_path

    folders = find_images(source)
    images = [image for found in folders.values() for image in found]
    points, problems = read_annotations(
        arguments.format,
        source,
        images,
        arguments.annotations and arguments.annotations.resolve(),
        arguments.category or (),
        arguments.unannotated,
    )
    folders = {name: kept for name, found in folders.items() if (kept := [image for image in found if image in points])}
    split = divide_folders(folders, make_folder(root), arguments)
    jobs = make_jobs(root, split, points, None, settings)
    return prepare(root, jobs, problems, arguments.workers, crop_size=arguments.crop_size)


if __name__ == "__main__":
    run_script(main)
