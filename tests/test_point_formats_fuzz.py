"""The readers of annotation formats on what nobody meant to write."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from own_folders import of_image, read
from raw_data import write
from test_point_formats import BOM, CVAT, VIA_SHAPES, coco, result, shape, task, via

from datasets.raw.annotations import read_jhu, read_nwpu
from datasets.raw.formats import FORMATS

CELLS = st.sampled_from(
    ["1", "10 20 6 8 1 0", "2.5", "1,5", "nan", "x", "y", "image", "a.jpg", "", '"', "é", "1e999"]
) | st.text(max_size=4)
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["a.jpg", "point", "rect", "1"])
)
KEYS = (
    "images annotations id image_id file_name bbox keypoints shapes points shape_type data result value type name cx cy"
)
KEYS += " original_width metadata view file fid_list xy vid av filename regions shape_attributes x y width height imageWidth"
TREE = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS.split()), inner),
    max_leaves=12,
)
VALID = [
    coco([{"image_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2]}, {"image_id": "b", "bbox": [0, 0, 1, 1]}]),
    {"shapes": [shape([[1, 2]], "point"), shape([[1, 2], [3, 4]], "circle")], "imageWidth": 3, "imageHeight": 4},
    via(*VIA_SHAPES),
    {"a.jpg": [[1, 2], [3, 4]]},
    {"points": [[1, 2]]},
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


def read_or_refuse(path, forms, *published):
    """Every reader gives finite marks or one line."""
    reads = [lambda form=form: read(form, path) for form in forms if FORMATS[form].files != "each"]
    reads += [lambda form=form: {"": (of_image(form, path),)} for form in forms if FORMATS[form].files != "all"]
    reads += [lambda read=read: {"": (read(path),)} for read in published]
    for get in reads:
        try:
            found = get()
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 600
        else:
            assert all(np.isfinite(mark[:2]).all() for value in found.values() for mark in value[0])


@settings(max_examples=120, deadline=None)
@given(TABLES, st.sampled_from(",;\t "), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_fuzzed_tables(tmp_path_factory, rows, separator, end, mark):
    text = end.join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass")
    path = write(tmp_path_factory.getbasetemp() / "fuzz.csv", (BOM if mark else b"") + text)
    read_or_refuse(path, ["csv", "via", "yolo", "xy"], read_jhu)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_fuzzed_json(tmp_path_factory, data):
    value = replace_somewhere(data, data.draw(st.sampled_from(VALID)), data.draw(TREE))
    text = json.dumps(value)
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 10]))
    path = write(tmp_path_factory.getbasetemp() / "fuzz.json", text[: len(text) - cut])
    read_or_refuse(path, ["coco", "labelme", "via", "json", "labelstudio", "pnt"], read_nwpu)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fuzzed_xml(tmp_path_factory, data):
    text = CVAT
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        new = data.draw(st.sampled_from(["", "<", "/>", '"', "1e999", "-5", ";", "&x;", "nan"]))
        text = text[:start] + new + text[start + data.draw(st.integers(0, 12)) :]
    read_or_refuse(write(tmp_path_factory.getbasetemp() / "fuzz.xml", text), ["cvat"])
