"""The readers of annotation formats on what nobody meant to write."""

import functools
import json
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from own_folders import read
from raw_data import write
from test_point_formats import CVAT, VIA_HEADER, VIA_SHAPES, coco, result, shape, task, via

from datasets.raw.annotations import read_jhu, read_nwpu
from datasets.raw.point_folders import FORMATS

BOXES = [{"image_id": 1, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2]}, {"image_id": "b", "bbox": [0, 0, 1, 1]}]
RESULTS = result("keypointlabels", x=1, y=2), result("rectanglelabels", "2", x=1, y=2, width=3, height=4)
SHAPES = [shape([[1, 2]], "point"), shape([[1, 2], [3, 4]], "circle")]
VALID = {
    "csv": [
        "image,x,y\na.jpg,1,2.5\nb.jpg,,\n",
        "x;y;w;h\n1,5;2;3;4\n",
        f'{VIA_HEADER}a.jpg,"{{""name"":""point""}}"\n',
    ],
    "txt": ["10 20 6 8 1 0\n", "1.5 2\n", "0 .5 .5 .1 .1\n0 .5 .5 .1 .2 .3 .4\n"],
    "xml": [CVAT],
    "json": [coco(BOXES), {"shapes": SHAPES, "imageWidth": 3, "imageHeight": 4}, via(*VIA_SHAPES), {"a.jpg": [[1, 2]]}]
    + [{"points": [[1, 2]]}, [task(*RESULTS)], {"points": {"a.jpg": {"head": [{"x": 1, "y": 2}]}}}],
}
TOKENS = re.compile(r'"[^"]*"|[-\w.]+|\s|.')
OTHERS = [
    "",
    "null",
    "[]",
    "{}",
    "[1]",
    '{"x": 1}',
    "-5",
    "1e999",
    "nan",
    '"x"',
    "é",
    "a.jpg",
    ",",
    "\n",
    "<",
    "/>",
    "&x;",
]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_reader_gives_finite_marks_or_one_line(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(list(VALID)))
    valid = data.draw(st.sampled_from(VALID[suffix]))
    tokens = TOKENS.findall(valid if isinstance(valid, str) else json.dumps(valid))
    for _ in range(data.draw(st.integers(1, 3))):
        tokens[data.draw(st.integers(0, len(tokens) - 1))] = data.draw(st.sampled_from(OTHERS))
    path = write(tmp_path_factory.getbasetemp() / f"fuzz.{suffix}", "".join(tokens))
    readers = [name for name, form in FORMATS.items() if f".{suffix}" in form.suffixes]
    reads = [functools.partial(read, name, path, named=named) for name in readers for named in (True, False)]
    reads += [lambda: {"": (read_jhu(path),)}] if suffix == "txt" else []
    reads += [lambda: {"": (read_nwpu(path),)}] if suffix == "json" else []
    for get in reads:
        try:
            assert all(np.isfinite(mark[:2]).all() for value in get().values() for mark in value[0])
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and len(str(error)) < 600
