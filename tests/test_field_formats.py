"""Formats of tools that people have, each written by hand as its tool writes it, against its truth point by point."""

import math

import numpy as np
import pytest
import scipy.io
from own_folders import write
from raw_data import image_info

from datasets.raw.cvat import read_cvat
from datasets.raw.dots import read_pnt, read_points_mat
from datasets.raw.labelstudio import image_of_address, read_labelstudio, without_upload_prefix
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.via import read_via


def marks(value):
    """x, y, size and label of each mark; no size is None."""
    return [(m.x, m.y, None if math.isnan(m.size) else pytest.approx(m.size), m.label) for m in value.marks]


def refused(read, path, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        read(path, *arguments, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and ";" in message
    return message.removeprefix(f"{path}: ")


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>people</name></task></meta>
  <image id="0" name="train/a.jpg" width="200" height="150">
    <points label="head" source="manual" occluded="0" points="20.5,30.00;60,70.25;100,120" z_order="0"></points>
    <box label="body" source="manual" occluded="0" xtl="10" ytl="20" xbr="30" ybr="65" z_order="0" rotation="30"></box>
    <polygon label="head" points="0,0;4,0;4,4;0,4"><attribute name="age">3</attribute></polygon>
    <ellipse label="head" cx="50" cy="60" rx="2" ry="8"/>
    <skeleton label="pose"><points label="1" outside="0" points="10,10"/><points label="2" outside="0" points="14,19"/>
      <points label="3" outside="1" points="90,90"/></skeleton>
    <tag label="crowded"/>
    <polyline label="road" points="1,2;3,4"/>
  </image>
  <image id="1" name="train/b.jpg" width="200" height="150"></image>
</annotations>
"""


def test_cvat(tmp_path):
    path = write(tmp_path / "annotations.xml", CVAT)
    found = read_cvat(path, ["head", "body", "pose"])
    assert marks(found["train/a.jpg"]) == [
        *((20.5, 30, None, "head"), (60, 70.25, None, "head"), (100, 120, None, "head")),
        *((20, 42.5, 30, "body"), (2, 2, 4, "head"), (50, 60, 8, "head"), (12, 14.5, 6, "pose")),
    ]
    assert found["train/a.jpg"].image_size == (200, 150) and marks(found["train/b.jpg"]) == []
    assert refused(read_cvat, path).startswith("train/a.jpg: shape 7: is a polyline; mark objects as points")


@pytest.mark.parametrize(
    "text, cause",
    [
        ("<annotations><image", "not valid XML"),
        ("", "not valid XML"),
        ("<annotation><object/></annotation>", "is Pascal VOC, not CVAT's"),
        ("<annotations><track id='0'/></annotations>", "is CVAT for video, with tracks"),
        ("<annotations><image id='0'/></annotations>", "image 1: lacks its name"),
        (
            "<annotations><image name='a'><points points='1,2,3'/></image></annotations>",
            "shape 1: points holds '1,2,3'",
        ),
        ("<annotations><image name='a'><points points='1,x'/></image></annotations>", "'x' is no finite number"),
        ("<annotations><image name='a'><box xtl='5' ytl='1' xbr='2' ybr='3'/></image></annotations>", "-3 x 2"),
        ("<annotations><image name='a'/><image name='a'/></annotations>", "'a' is there twice"),
        ('<!DOCTYPE x [<!ENTITY e "ha">]><annotations>&e;</annotations>', "defines entities"),
        ('<?xml version="1.0" encoding="nonsense"?><annotations/>', "not"),
    ],
)
def test_cvat_that_is_wrong(tmp_path, text, cause):
    assert cause in refused(read_cvat, write(tmp_path / "a.xml", text))


def result(kind, key="k", **value):
    names = {"keypointlabels": "keypointlabels", "rectanglelabels": "rectanglelabels", "brushlabels": "brushlabels"}
    value = value | ({names[kind]: ["head"]} if kind in names else {})
    stated = {"original_width": 200, "original_height": 150, "image_rotation": 0, "to_name": "image", "from_name": "kp"}
    return {**stated, "id": key, "type": kind, "value": value}


def task(*results, name="/data/upload/1/0a1b2c3d-a.jpg", **annotation):
    entry = {"id": 7, "result": list(results), "was_cancelled": False, **annotation}
    return {"id": 3, "annotations": [entry], "data": {"image": name}, "predictions": []}


def test_label_studio(tmp_path):
    results = [
        result("keypointlabels", "1", x=12.5, y=20.0, width=0.4),
        result("rectanglelabels", "2", x=10, y=20, width=10, height=30, rotation=0),
        result("rectanglelabels", "3", x=50, y=50, width=10, height=40 / 3, rotation=90),
        result("ellipse", "4", x=50, y=50, radiusX=2, radiusY=6, rotation=0),
        result("labels", "4", x=50, y=50, radiusX=2, radiusY=6, labels=["car"]),
        result("polygonlabels", "5", points=[[0, 0], [2, 0], [2, 4]], polygonlabels=["head"]),
        result("choices", "6", choices=["blurred"]),
        {"type": "relation", "from_id": "1", "to_id": "2"},
    ]
    skipped = {**task(name="b.jpg"), "annotations": [{"result": [], "was_cancelled": True}]}
    path = write(tmp_path / "p.json", [task(*results), task(name="c.jpg"), skipped, {**skipped, "annotations": []}])
    found = read_labelstudio(path)
    assert list(found) == ["/data/upload/1/0a1b2c3d-a.jpg", "c.jpg"] and marks(found["c.jpg"]) == []
    (point, flat, turned, ellipse, polygon) = found["/data/upload/1/0a1b2c3d-a.jpg"].marks
    assert (point.x, point.y, point.label) == (25, 30, "head") and math.isnan(point.size)
    assert (flat.x, flat.y, flat.size) == (30, 52.5, 30)
    # 20 wide and 20 high, turned by 90 degrees around its upper left corner (100, 75).
    assert (turned.x, turned.y, turned.size) == (pytest.approx(90), pytest.approx(85), pytest.approx(20))
    assert (ellipse.x, ellipse.y, ellipse.label) == (100, 75, "car") and ellipse.size == pytest.approx(12)
    assert (polygon.x, polygon.y) == (2, 3) and found["/data/upload/1/0a1b2c3d-a.jpg"].image_size == (200, 150)


def test_label_studio_min(tmp_path):
    value = {
        "x": 12.5,
        "y": 20,
        "width": 0.4,
        "keypointlabels": ["head"],
        "original_width": 200,
        "original_height": 150,
    }
    found = read_labelstudio(
        write(tmp_path / "p.json", [{"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 1, "kp": [value]}])
    )
    assert marks(found["/data/upload/1/0a1b2c3d-a.jpg"]) == [(25, 30, None, "head")]


@pytest.mark.parametrize(
    "contents, cause",
    [
        ({}, "no list of tasks"),
        ([{"data": {"image": "a.jpg"}}], "has no list of annotations"),
        ([{"data": {"text": "words"}, "annotations": []}], "names no image"),
        ([task(result("brushlabels", rle=[1, 2]))], "is a brush; mark objects as keypoint"),
        ([task(result("keypointlabels", x=1, y=2) | {"image_rotation": 90})], "turned by 90 degrees"),
        ([task(result("keypointlabels", x="1", y=2))], "x: '1' is no finite number"),
        ([task(result("keypointlabels", x=1, y=2) | {"original_width": 0})], "an image of 0 x 150 pixels"),
        ([task(), task()], "is there twice"),
        ([task() | {"annotations": [{"result": []}, {"result": []}]}], "has 2 annotations"),
    ],
)
def test_label_studio_that_is_wrong(tmp_path, contents, cause):
    assert cause in refused(read_labelstudio, write(tmp_path / "p.json", contents))


def test_label_studio_brushes_of_other_labels_do_not_matter(tmp_path):
    path = write(tmp_path / "p.json", [task(result("brushlabels", rle=[1]), result("keypointlabels", "2", x=1, y=2))])
    assert len(read_labelstudio(path, ["car"])["/data/upload/1/0a1b2c3d-a.jpg"].marks) == 1


def test_label_studio_names_of_images():
    assert image_of_address("/data/local-files/?d=photos/a%20b.jpg") == "photos/a b.jpg"
    assert image_of_address("https://example.org/x/a%20b.jpg?token=3") == "/x/a b.jpg"
    assert image_of_address("s3://bucket/x/a.jpg") == "/x/a.jpg"
    assert without_upload_prefix("x/0a1b2c3d-a-b.jpg") == "a-b.jpg" and without_upload_prefix("a-b.jpg") is None


VIA3 = {
    "project": {"pname": "x", "data_format_version": "3.1.1", "vid_list": ["1", "2"]},
    "config": {},
    "attribute": {"1": {"aname": "kind", "anchor_id": "FILE1_Z0_XY1", "type": 4, "options": {"0": "head", "1": "car"}}},
    "file": {
        "1": {"fid": "1", "fname": "a.jpg", "type": 2, "loc": 1, "src": ""},
        "2": {"fid": "2", "fname": "b.jpg", "type": 2, "loc": 1, "src": ""},
    },
    "metadata": {
        "1_a": {"vid": "1", "flg": 0, "z": [], "xy": [1, 30, 40], "av": {"1": "0"}},
        "1_b": {"vid": "1", "flg": 0, "z": [], "xy": [2, 10, 20, 4, 9], "av": {"1": "1"}},
        "1_c": {"vid": "1", "flg": 0, "z": [], "xy": [3, 10, 10.5, 5], "av": {}},
        "1_d": {"vid": "1", "flg": 0, "z": [], "xy": [4, 10, 10, 2, 8], "av": {}},
        "1_e": {"vid": "1", "flg": 0, "z": [], "xy": [7, 0, 0, 4, 0, 2, 4], "av": {}},
        "1_f": {"vid": "1", "flg": 0, "z": [], "xy": [], "av": {"1": "0"}},
    },
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
}
VIA3_MARKS = [(30, 40, None, "head"), (12, 24.5, 6, "car"), (10, 10.5, 10, ""), (10, 10, 8, ""), (2, 2, 4, "")]
VIA3_TABLE = """# Exported using VGG Image Annotator (http://www.robots.ox.ac.uk/~vgg/software/via)
# SHAPE_ID = {"POINT":1,"RECTANGLE":2}
# ATTRIBUTE = {"1":{"aname":"kind","type":4,"options":{"0":"head","1":"car"}}}
# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata
"1_a","[""a.jpg""]",0,"[]","[1,30,40]","{""1"":""0""}"
"1_b","[""a.jpg""]",0,"[]","[2,10,20,4,9]","{""1"":""1""}"
"1_f","[""a.jpg""]",0,"[]","[]","{}"
"""


def test_via_3(tmp_path):
    found = read_via(write(tmp_path / "v.json", VIA3))
    assert marks(found["a.jpg"]) == VIA3_MARKS and marks(found["b.jpg"]) == []
    found = read_via(write(tmp_path / "v.csv", VIA3_TABLE))
    assert list(found) == ["a.jpg"] and marks(found["a.jpg"]) == VIA3_MARKS[:2]


@pytest.mark.parametrize(
    "change, cause",
    [
        ({"view": {"1": {"fid_list": ["1", "2"]}}}, "view '1': does not show exactly one file"),
        ({"file": {k: {**v, "type": 4} for k, v in VIA3["file"].items()}}, "is no image in this project"),
        ({"metadata": {"m": {"vid": "1", "xy": [6, 1, 2, 3, 4]}}}, "is a 'polyline'; mark objects as"),
        ({"metadata": {"m": {"vid": "9", "xy": [1, 2, 3]}}}, "its vid is no view"),
        ({"metadata": {"m": {"vid": "1", "xy": [1, 2]}}}, "a point of 1 numbers"),
        ({"view": []}, "without file, view or metadata"),
    ],
)
def test_via_3_that_is_wrong(tmp_path, change, cause):
    assert cause in refused(read_via, write(tmp_path / "v.json", VIA3 | change))


def test_via_1(tmp_path):
    region = {
        "shape_attributes": {"name": "circle", "cx": 10, "cy": 10.5, "r": 5},
        "region_attributes": {"name": "head"},
    }
    entry = {"fileref": "", "size": 9, "filename": "a.jpg", "base64_img_data": "", "regions": {"0": region}}
    assert marks(read_via(write(tmp_path / "v.json", {"a.jpg9": entry}))["a.jpg"]) == [(10, 10.5, 10, "head")]
    header = "#filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    row = 'a.jpg,9,"{}",1,0,"{""name"":""point"",""cx"":3,""cy"":4}","{""name"":""head""}"\n'
    assert marks(read_via(write(tmp_path / "v.csv", header + row))["a.jpg"]) == [(3, 4, None, "head")]


def test_via_labels(tmp_path, capsys):
    def regions(**attributes):
        shape = {"name": "point", "cx": 3, "cy": 4}
        return {"a": {"filename": "a.jpg", "regions": [{"shape_attributes": shape, "region_attributes": attributes}]}}

    def label(attributes, **options):
        return read_via(write(tmp_path / "v.json", regions(**attributes)), **options)["a.jpg"].marks[0].label

    assert label({"anything": "head"}) == "head" and label({"age": "3", "type": "head"}) == "head"
    assert (
        label({"type": {"head": True, "car": False}}) == "head"
        and label({"age": 3, "size": "L"}, attribute="age") == "3"
    )
    assert label({"age": 3, "size": "L"}) == "" and "have the attributes age, size" in capsys.readouterr().out
    message = refused(read_via, tmp_path / "v.json", attribute="kind")
    assert message == "--label-attribute kind: is not there; found: age, size"


def test_dotdotgoose(tmp_path):
    contents = {
        "classes": ["head", "car"],
        "points": {"a.jpg": {"head": [{"x": 20.5, "y": 30}], "car": [{"x": 1, "y": 2}]}, "b.jpg": {}},
        "colors": {"head": [255, 0, 0]},
        "metadata": {"survey_id": "", "coordinates": {}},
    }
    found = read_pnt(write(tmp_path / "a.pnt", contents))
    assert marks(found["a.jpg"]) == [(20.5, 30, None, "head"), (1, 2, None, "car")] and marks(found["b.jpg"]) == []
    for value, cause in (
        ({"classes": []}, "no object points"),
        ({"points": {"a.jpg": []}}, "'a.jpg': no object of classes"),
        ({"points": {"a.jpg": {"head": {}}}}, "'head': no list of points"),
        ({"points": {"a.jpg": {"head": [{"x": 1}]}}}, "point 1: None is no finite number"),
    ):
        assert cause in refused(read_pnt, write(tmp_path / "a.pnt", value))


@pytest.mark.parametrize(
    "text", ["10.5 20\n30 4e1\n", "10.5,20\r\n30,40", "\ufeff10.5\t20\n\n 30  40 \n", "10.5, 20\n30; 40\n"]
)
def test_xy(tmp_path, text):
    assert marks(read_xy(write(tmp_path / "a.txt", text))) == [(10.5, 20, None, ""), (30, 40, None, "")]
    assert "line 2: 3 values; write the two values x y" in refused(read_xy, write(tmp_path / "b.txt", "1 2\n1 2 3\n"))
    assert "line 1: 'x' is no finite number" in refused(read_xy, write(tmp_path / "b.txt", "x y\n"))


POLYGON = "0 0.1 0.2 0.2 0.2 0.2 0.4 0.1 0.4\n0 0.5 0.5 0.6 0.5 0.55 0.7\n"


def test_yolo_of_all_kinds(tmp_path):
    def read(text):
        return [
            (round(m.x, 6), round(m.y, 6), round(m.size, 6))
            for m in read_yolo(write(tmp_path / "a.txt", text), 200, 150).marks
        ]

    assert read(POLYGON) == [(30, 45, 24.494897), (110, 90, 24.494897)]
    pose = "0 0.1 0.2 0.05 0.05 0.1 0.2 2\n0 0.5 0.5 0.05 0.05 0 0 0\n"
    assert read(pose) == [(20, 30, 8.660254), (100, 75, 8.660254)]
    # Two keypoints: eleven values could be a polygon of five corners as well.
    assert read("0 0.1 0.2 0.05 0.05 0.1 0.2 2 0.09 0.19 1\n") == [(20, 30, 8.660254)]
    with pytest.raises(ValueError, match="may be a box with keypoints or the corners of a polygon"):
        read("0 0.1 0.2 0.05 0.05 0.1 0.2 0.3 0.09 0.19 0.4\n")  # of a prediction with confidences, or five corners
    assert read("0 0.1 0.2 0.05 0.05\n" + POLYGON)[1] == (30, 45, 24.494897)


def test_yolo_poses_that_may_be_polygons_need_the_data_set_to_say_so(tmp_path):
    pose = "0 0.3 0.3 0.25 0.2 0.2 0.25\n"
    assert "line 1: 7 values, which may be a box with keypoints or" in refused_line(read_yolo, tmp_path / "x", pose)
    write(tmp_path / "y" / "data.yaml", "kpt_shape: [1, 2]\nnames: [head]\n")
    (point,) = read_yolo(write(tmp_path / "y" / "labels" / "a.txt", pose), 200, 150).marks
    assert (point.x, point.y) == (60, 45)


def refused_line(read, folder, text):
    return refused(read, write(folder / "labels" / "a.txt", text), 200, 150)


@pytest.mark.parametrize(
    "contents",
    [
        {"annPoints": [[10.5, 20], [30, 40]]},
        {"image_info": image_info([[10.5, 20], [30, 40]])},
        {"location": [[10.5, 20], [30, 40]], "number": 2},
        {"dots": [[10.5, 20], [30, 40]], "count": 2},
        {"frame": {"loc": [[10.5, 20], [30, 40]]}},
        {"whatever": [[10.5, 20], [30, 40]]},
    ],
)
def test_mat(tmp_path, contents):
    scipy.io.savemat(
        tmp_path / "a.mat", {key: np.array(v) if isinstance(v, list) else v for key, v in contents.items()}
    )
    assert marks(read_points_mat(tmp_path / "a.mat")) == [(10.5, 20, None, ""), (30, 40, None, "")]


def test_mat_that_is_wrong(tmp_path):
    for contents, cause in (
        ({"a": np.zeros((2, 2)), "b": 3.0}, "no key annPoints (keys found: a, b)"),
        ({"points": np.zeros((2, 3))}, "points has shape [2, 3]"),
        ({"points": "words"}, "points holds text"),
        ({"points": np.array([[1, np.nan]])}, "row 1 is [1.0, nan]"),
        ({"points": {"other": 3.0}}, "no field location (fields found: other)"),
    ):
        scipy.io.savemat(tmp_path / "a.mat", contents)
        assert cause in refused(read_points_mat, tmp_path / "a.mat")
