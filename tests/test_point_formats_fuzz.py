"""The readers of annotation formats on what nobody meant to write."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_data import write
from test_field_formats import CVAT, VIA3, result, task
from test_point_formats import BOM, VIA_SHAPES, coco, shape, via

from datasets.raw.cvat import read_cvat
from datasets.raw.dots import read_pnt, read_points_json
from datasets.raw.labelstudio import read_labelstudio
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.point_formats import read_coco, read_labelme
from datasets.raw.tables import read_csv
from datasets.raw.via import read_via

CELLS = st.sampled_from(["1", "2.5", "1,5", "nan", "x", "y", "image", "a.jpg", "", '"', "é", "1e999"]) | st.text(
    max_size=4
)
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["a.jpg", "point", "rect", "1"])
)
KEYS = ["images", "annotations", "id", "image_id", "file_name", "bbox", "keypoints", "shapes", "points", "shape_type"]
KEYS += ["data", "result", "value", "type", "original_width", "metadata", "view", "file", "fid_list", "xy", "vid", "av"]
KEYS += ["filename", "regions", "shape_attributes", "name", "cx", "cy", "x", "y", "width", "height", "imageWidth"]
TREE = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=12
)
VALID = [
    coco([{"image_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2]}, {"image_id": "b", "bbox": [0, 0, 1, 1]}]),
    {"shapes": [shape([[1, 2]], "point"), shape([[1, 2], [3, 4]], "circle")], "imageWidth": 3, "imageHeight": 4},
    via(*VIA_SHAPES),
    {"a.jpg": [[1, 2], [3, 4]]},
    {"points": [[1, 2]]},
    VIA3,
    [task(result("keypointlabels", x=1, y=2), result("rectanglelabels", "2", x=1, y=2, width=3, height=4))],
    {"points": {"a.jpg": {"head": [{"x": 1, "y": 2}]}}},
]


def replace_somewhere(data, value, new):
    """``value`` with one part of it, chosen by hypothesis, exchanged or removed."""
    if not isinstance(value, (dict, list)) or not value or data.draw(st.integers(0, 4)) == 0:
        return new
    value = value.copy()
    key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    if data.draw(st.integers(0, 4)) == 0:
        del value[key]
    else:
        value[key] = replace_somewhere(data, value[key], new)
    return value


def read_or_refuse(path, reads):
    """Every reader gives finite marks or one line -> how many readers did."""
    done = 0
    for read in reads:
        try:
            found = read(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 600
        else:
            values = found.values() if isinstance(found, dict) else [found]
            assert all(np.isfinite([mark.x, mark.y]).all() for value in values for mark in value.marks)
        done += 1
    return done


@settings(max_examples=120, deadline=None)
@given(TABLES, st.sampled_from(",;\t "), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_fuzzed_tables(tmp_path_factory, rows, separator, end, mark):
    text = end.join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")
    path = write(tmp_path_factory.getbasetemp() / "fuzz.csv", (BOM if mark else b"") + text)
    readers = [read_csv, lambda p: read_csv(p, named=False), read_via, lambda p: read_yolo(p, 64, 48), read_xy]
    assert read_or_refuse(path, readers) == 5


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_fuzzed_json(tmp_path_factory, data):
    value = replace_somewhere(data, data.draw(st.sampled_from(VALID)), data.draw(TREE))
    text = json.dumps(value)
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 10]))
    path = write(tmp_path_factory.getbasetemp() / "fuzz.json", text[: len(text) - cut])
    readers = [read_coco, read_labelme, read_via, read_points_json, lambda p: read_points_json(p, named=False)]
    readers += [read_labelstudio, read_pnt]
    assert read_or_refuse(path, readers) == 7


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fuzzed_xml(tmp_path_factory, data):
    text = CVAT
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        text = (
            text[:start]
            + data.draw(st.sampled_from(["", "<", "/>", '"', "1e999", "-5", ";", "&x;", "nan"]))
            + text[end:]
        )
    path = write(tmp_path_factory.getbasetemp() / "fuzz.xml", text)
    assert read_or_refuse(path, [read_cvat, lambda p: read_cvat(p, ["head"])]) == 2
