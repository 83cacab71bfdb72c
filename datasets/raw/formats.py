"""Which annotation formats there are: what their files are called, who reads them, and what they say, in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datasets.raw.cvat import read_cvat
from datasets.raw.dots import read_pnt, read_points_json, read_points_mat
from datasets.raw.labelstudio import read_labelstudio
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.marks import Annotated
from datasets.raw.point_formats import labelme_image, read_coco, read_labelme
from datasets.raw.tables import Sizes, read_csv
from datasets.raw.via import read_via


class Request(NamedTuple):
    """What a reader may want to know besides its file."""

    named: bool  # one file for many images, which it names
    categories: tuple[str, ...] = ()
    attribute: str | None = None
    # (width, height) upright and as stored, of the image named so.
    sizes: Callable[[str], Sizes | None] = lambda name: None
    say: Callable[[Path, str], None] = lambda path, text: print(f"{path}: {text}")

    def upright(self) -> tuple[int, int]:
        """Width and height of the only image."""
        sizes = self.sizes("")
        if sizes is None:
            raise ValueError("a format in parts of the image, without the image")
        return sizes[0]


class Format(NamedTuple):
    """One format; ``files`` are "each" (one an image), "all" (one for many) or "both"."""

    suffixes: tuple[str, ...]
    files: str
    read: Callable[[Path, Request], dict[str, Annotated]]
    reader: Callable[..., object]
    file: str
    objects: str
    image_named: Callable[[Path], str | None] | None = None  # the image that a file of another name says it is about
    stored: bool = False  # where neither a size nor the points tell: the stored grid rather than the upright one


_BOTH = "`IMG{}`, or one for all"
FORMATS = {
    "csv": Format(
        (".csv", ".tsv"),
        "both",
        lambda path, ask: read_csv(path, ask.named, ask.attribute, ask.sizes, ask.say),
        read_csv,
        _BOTH.format(".csv"),
        "a row `x, y` or `image, x, y`; boxes by their columns' names: `x, y` (corner) or `cx, cy` with `width, height`, "
        "`xmin, ymin, xmax, ymax`; beside a whole box (ImageJ's `BX, BY, Width, Height`) `x, y` is the object's place; `label` "
        "or `class`; commas, semicolons or tabs, below a header also decimal commas; a row with x and y empty: nobody there",
    ),
    "json": Format(
        (".json",),
        "both",
        lambda path, ask: read_points_json(path, ask.named),
        read_points_json,
        _BOTH.format(".json"),
        '`[x, y]` in a list, or in `{"points": [...]}`; for all: `{"IMG.jpg": [...]}`',
    ),
    "coco": Format(
        (".json",),
        "all",
        lambda path, ask: read_coco(path, ask.categories),
        read_coco,
        "one for all",
        "an `annotations` entry: its `bbox` [left, top, width, height], else its visible `keypoints`; regions marked "
        "`iscrowd` or `ignore` are left out and counted",
    ),
    "yolo": Format(
        (".txt",),
        "each",
        lambda path, ask: {"": read_yolo(path, *ask.upright())},
        read_yolo,
        "`IMG.txt`, beside the image or in `labels/`",
        "a line `class x y width height [confidence]`, parts of the image, (x, y) the centre; lines of pose (keypoints behind "
        "the box) and segmentation (`class x y x y ...`), told apart by where the values lie, or by the YAML file's `kpt_shape`",
    ),
    "labelme": Format(
        (".json",),
        "each",
        lambda path, ask: read_labelme(path, ask.categories),
        read_labelme,
        "`IMG.json`, or the image it names",
        "a `shapes` entry: point, rectangle, polygon or circle",
        image_named=labelme_image,
    ),
    "via": Format(
        (".json", ".csv"),
        "all",
        lambda path, ask: read_via(path, ask.categories, ask.attribute),
        read_via,
        "JSON or CSV for many, versions 1 to 3",
        "a region: point, rect, circle, ellipse or polygon",
    ),
    "cvat": Format(
        (".xml",),
        "all",
        lambda path, ask: read_cvat(path, ask.categories),
        read_cvat,
        "CVAT for images 1.1: `annotations.xml`",
        "each point of a `points` element; a box, polygon, ellipse or skeleton",
    ),
    "labelstudio": Format(
        (".json",),
        "all",
        lambda path, ask: read_labelstudio(path, ask.categories),
        read_labelstudio,
        "Label Studio's JSON or JSON-MIN",
        "a keypoint, rectangle, ellipse or polygon, in percent of the image",
    ),
    "xy": Format(
        (".txt",),
        "each",
        lambda path, ask: {"": read_xy(path)},
        read_xy,
        "`IMG.txt`",
        "a line `x y` in pixels (P2PNet, PET)",
    ),
    "pnt": Format(
        (".pnt",),
        "all",
        lambda path, ask: read_pnt(path),
        read_pnt,
        "a project of DotDotGoose",
        "a point",
    ),
    "mat": Format(
        (".mat",),
        "each",
        lambda path, ask: {"": read_points_mat(path)},
        read_points_mat,
        "`IMG.mat`, `IMG_ann.mat` or `GT_IMG.mat`",
        "a row of an array [N, 2], under one of the names that the field uses (`annPoints`, `image_info`, `points`, ...) or "
        "the only one",
        stored=True,
    ),
}


def table() -> str:
    """The formats as the Markdown table of docs/formats.md."""
    lines = ["| `--format` | file | one object | reader |", "|---|---|---|---|"]
    for name, form in FORMATS.items():
        reader = f"{form.reader.__module__.replace('.', '/')}.py: {form.reader.__name__}"
        lines.append(f"| `{name}` | {form.file} | {form.objects} | `{reader}` |")
    return "\n".join(lines)
