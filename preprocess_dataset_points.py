"""Prepare a folder of one's own, images with annotated points or boxes, for training.

    python preprocess_dataset_points.py --format auto --input-dataset-path P --output-dataset-path P

Images may lie in P itself or in folders; those in folders called train, val and test (in any case) stay in that split, and
without such folders, lists or fractions divide them. Annotations come in a file for each image, here IMG.jpg, or in one for
all (--annotations FILE): points as csv, json, xy (lines x y), mat; exports of COCO, YOLO, LabelMe, VIA, CVAT for images 1.1, Label
Studio, DotDotGoose (pnt). docs/formats.md says what each of them may look like; auto takes the one that the files are.

Photographs are turned upright by their EXIF orientation, and their points with them: docs/formats.md says for which format
points are taken as made upright.

A box becomes its centre, and its size, sqrt(width * height), the third column of a train npy; all other points get the
distance to their neighbours there.
"""

from __future__ import annotations

from pathlib import Path

from datasets.raw.point_folders import FORMATS, find_images, read_annotations
from datasets.raw.preprocess import Settings, make_preprocess_parser, parse_preprocess_arguments, prepare
from datasets.raw.splits import add_split_options, divide_folders
from utils.cli import run_script
from utils.config import number


def main() -> int:
    """Find images and annotations, divide them where their folders do not, and prepare all splits."""
    parser = make_preprocess_parser("Prepare images and points of your own for training.", Settings(512, 2048))
    text = "of the annotations (default: what the files show)"
    parser.add_argument("--format", choices=[*FORMATS, "auto"], default="auto", help=text)
    text = "one file for all images, or the folder of the files"
    parser.add_argument("--annotations", type=Path, metavar="PATH", help=text)
    parser.add_argument("--category", nargs="+", metavar="LABEL", help="count objects of these labels only")
    text = "csv, via: the column or region attribute that holds the label"
    parser.add_argument("--label-attribute", metavar="NAME", help=text)
    text = "images without annotation: left out, or without points (default: empty for yolo, else skip)"
    parser.add_argument("--unannotated", choices=["skip", "empty"], help=text)
    add_split_options(parser, "the training images", test=True)
    parser.add_argument("--crop-size", type=number(int, 8), default=512, help="of training on these data")
    arguments = parse_preprocess_arguments(parser)
    source = arguments.input_dataset_path

    folders = find_images(source)
    images = [image for found in folders.values() for image in found]
    annotations = arguments.annotations and arguments.annotations.resolve()
    labels = arguments.category or (), arguments.unannotated, arguments.label_attribute
    points, problems = read_annotations(arguments.format, source, images, annotations, *labels)
    folders = {name: [image for image in found if image in points] for name, found in folders.items()}
    split = divide_folders({name: found for name, found in folders.items() if found}, arguments)
    return prepare(arguments, split, points, None, problems)


if __name__ == "__main__":
    run_script(main)
