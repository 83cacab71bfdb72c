"""Each annotation format of common tools: what it may look like, and what it may not."""

import json
import math

import numpy as np
import pytest
import scipy.io
from own_folders import read
from raw_data import image_info, write

from datasets.raw.exports import image_of_address, without_upload_prefix

BOM = b"\xef\xbb\xbf"


def marks(found):
    """x, y, size, label of each mark by image, to a millionth; no size is None."""
    return {
        name: [(round(m.x, 6), round(m.y, 6), None if math.isnan(m.size) else round(m.size, 6), m.label) for m in marks]
        for name, (marks, _) in found.items()
    }


def refused(form, path, categories=(), **request):
    with pytest.raises(ValueError) as caught:
        read(form, path, categories, **request)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and ";" in message and len(message) < 400
    return message


def point(x, y, label=""):
    return (x, y, None, label)


TWO = [point(1.5, 2), point(3, 4)]
BOX, POINT = (10, 20, 6, "head"), point(10, 20, "head")
SUFFIXES = {"csv": "csv", "via csv": "csv", "cvat": "xml", "pnt": "pnt", "xy": "txt", "yolo": "txt"}
READ = {
    "csv": {
        "1.5,2\n3,4e0\n": TWO,
        "y,X\n2,1.5\n4,3\n": TWO,
        "x\ty\r\n1.5\t2\r\n\r\n3\t4\r\n": TWO,
        '"x","y"\n"1.5"," 2 "\n3,4\n': TWO,
        **dict.fromkeys(("", "x,y\n", "\n\n", BOM), []),
        **dict.fromkeys(
            (
                "a.jpg,1.5,2\nзал/b 1.JPG,3,4\na.jpg,3,4\nc.jpg,,\n",
                "image,x,y\na.jpg,1.5,2\nзал/b 1.JPG,3,4\na.jpg,3,4\nc.jpg,,\n",
                "y;filename;x;who\n2;a.jpg;1.5;p\n4;зал/b 1.JPG;3;\n4;a.jpg;3;q\n;c.jpg;;\n",
            ),
            {"a.jpg": TWO, "зал/b 1.JPG": TWO[1:], "c.jpg": []},
        ),
        "label,x,y,image\nhead,10,20,a.jpg\n": {"a.jpg": [POINT]},
        "image,x_center,y_center,width,height,label\na.jpg,10,20,4,9,head\n": {"a.jpg": [BOX]},
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,200,150,head,8,15.5,12,24.5\n": {"a.jpg": [BOX]},
        "image;left;top;right;bottom;category\na.jpg;8;15.5;12;24.5;head\n": {"a.jpg": [BOX]},
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name\nhead,8,15.5,4,9,a.jpg\n": {"a.jpg": [BOX]},
        "label,x,y,image,width,height\nhead,8,15.5,a.jpg,4,9\n": {"a.jpg": [BOX]},
        "Image,X (px),Y [px]\na.jpg,1.5,2\na.jpg,3,4\n": {"a.jpg": TWO},  # of QuPath, CellProfiler and Excel
        "ObjectNumber,FileName_DNA,Location_Center_X,Location_Center_Y\n1,a.jpg,1.5,2\n2,a.jpg,3,4\n": {"a.jpg": TWO},
        "Image,Name,Centroid X px,Centroid Y px\na.jpg,,1.5,2\na.jpg,,3,4\n": {"a.jpg": TWO},
        "image;x;y\na.jpg;1,5;2\na.jpg;3;4\n": {"a.jpg": TWO},
        'image,x,y\na.jpg,"1,5",2\na.jpg,3,4\n': {"a.jpg": TWO},
        "x,y,left,top,right,bottom\n30,24,30,24,50,36\n": [(40, 30, 15.491933, "")],  # the place is the box's corner
        " ,Label,X,Y,Counter\n1,a.png,10,20,0\n": [point(10, 20, "0")],  # of ImageJ: a picture is no label
        "Label,X,Y,Counter\na.jpg:0001-0002-0003,1.5,2,0\na.jpg,3,4,1\n": {
            "a.jpg": [point(1.5, 2, "0"), point(3, 4, "1")]
        },
        " ,Label,X,Y,Counter\n1,head,10,20,1\n": [POINT],
    },
    "json": {
        '{"points": [[1.5, 2], [3, 4]], "by": "me"}': TWO,
        BOM + b"[]\r\n": [],
        '{"a.jpg": [[1.5, 2], [3, 4]], "зал.jpg": {"points": []}}': {"a.jpg": TWO, "зал.jpg": []},
    },
    "xy": dict.fromkeys(("1.5 2\n3 4e0\n", "1.5,2\r\n3,4", "\ufeff1.5\t2\n\n 3  4 \n", "1.5, 2\n3; 4\n"), TWO),
    "yolo": {BOM + b"0 0.5 0.2 0.1 0.3\r\n\r\n3 1.0 0 0 0\r\n": [(0.5, 0.2, 0.173205, "0"), point(1, 0, "3")], "": []},
    "pnt": {
        '{"points": {"a.jpg": {"head": [{"x": 10, "y": 20}], "car": [{"x": 1, "y": 2}]}, "b.jpg": {}}, "classes": []}': {
            "a.jpg": [POINT, point(1, 2, "car")],
            "b.jpg": [],
        }
    },
}


@pytest.mark.parametrize(
    "form, text, expected", [(form, *case) for form, cases in READ.items() for case in cases.items()]
)
def test_what_is_read(tmp_path, form, text, expected):
    expected = expected if isinstance(expected, dict) else {"": expected}
    path = write(tmp_path / f"a.{SUFFIXES.get(form, 'json')}", text)
    assert marks(read(form, path, named="" not in expected)) == expected


def coco(annotations, images=({"id": 1, "file_name": "a.jpg"}, {"id": "b", "file_name": "d/b.jpg"}), **more):
    return {"images": list(images), "annotations": annotations, **more}


def test_coco(tmp_path, capsys):
    annotations = [
        {"image_id": 1, "bbox": [10, 20, 4, 9], "category_id": 7},
        {"image_id": 1, "keypoints": [0, 0, 0, 3, 4, 2], "num_keypoints": 1, "category_id": 8},
        {"image_id": 1, "bbox": [3, 4, 0, 0], "keypoints": [3.5, 4, 1]},
        {"image_id": 1, "bbox": [5, 6, 0, 2]},
        {"image_id": 1, "keypoints": [0, 0, 2, 8, 8, 1, 3, 50, 0]},
        {"image_id": 1, "bbox": [0, 0, 2, 2], "keypoints": [9, 9, 2], "iscrowd": 0, "ignore": 0},
        {"image_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1},
        {"image_id": 1, "bbox": [5, 5, 2, 2], "iscrowd": 0, "ignore": 1},
    ]
    images = [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": "b", "file_name": "d/b.jpg", "width": 0, "height": 0},
    ]
    found = read("coco", write(tmp_path / "c.json", coco(annotations, images, categories=[{"id": 7, "name": "head"}])))
    boxes = [(12, 24.5, 6, "head"), point(3, 4, "8"), point(3.5, 4), point(5, 7), (4, 4, 8, ""), (1, 1, 2, "")]
    assert marks(found) == {"a.jpg": boxes, "d/b.jpg": []}
    assert found["a.jpg"].image_size == (64, 48) and found["d/b.jpg"].image_size is None
    assert "2 regions marked iscrowd or ignore are not counted" in capsys.readouterr().err


def shape(points, kind=None, label="p"):
    return {"label": label, "points": points} | ({"shape_type": kind} if kind else {})


def test_labelme(tmp_path):
    shapes = [
        shape([[3, 4]], "point"),
        shape([[10, 20], [14, 29]], "rectangle", "q"),
        shape([[14, 29], [10, 20]], "rectangle"),
        shape([[10, 20], [14, 20], [14, 29], [10, 29]], "rectangle"),
        shape([[0, 0], [4, 0], [4, 4], [3, 4], [2, 4], [0, 4]], "polygon"),
        shape([[0, 0], [4, 0], [0, 4]]),
        shape([[10, 10], [13, 14]], "circle"),
    ]
    path = write(tmp_path / "a.json", {"shapes": shapes, "imageWidth": 64, "imageHeight": 48, "imageData": None})
    box, square = (12, 24.5, 6), (2, 2, 4, "p")
    expected = [point(3, 4, "p"), (*box, "q"), (*box, "p"), (*box, "p"), square, square, (10, 10, 10, "p")]
    assert marks(read("labelme", path, named=False)) == {"": expected}
    assert read("labelme", path, named=False)[""].image_size == (64, 48)


VIA_SHAPES = [
    {"name": "point", "cx": 3, "cy": 4},
    {"name": "rect", "x": 10, "y": 20, "width": 4, "height": 9},
    {"name": "circle", "cx": 10, "cy": 10.5, "r": 5},
    {"name": "ellipse", "cx": 10, "cy": 10, "rx": 2, "ry": 8, "theta": 0},
    {"name": "polygon", "all_points_x": [0, 4, 2], "all_points_y": [0, 0, 4]},
]
VIA_MARKS = {"a.jpg": [point(3, 4), (12, 24.5, 6, ""), (10, 10.5, 10, ""), (10, 10, 8, ""), (2, 2, 4, "")]}
VIA_MARKS["empty.jpg"] = []


def via(*shapes, name="a.jpg"):
    regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    return {f"{name}123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}}


@pytest.mark.parametrize("header", ["", "#"])  # version 1 begins with it
def test_via(tmp_path, header):
    entries = via(*VIA_SHAPES) | via(name="empty.jpg")
    project = write(tmp_path / "v.json", {"_via_settings": {}, "_via_img_metadata": entries})
    assert marks(read("via", project)) == VIA_MARKS
    if header:
        entries["a.jpg123"]["regions"] = {str(i): region for i, region in enumerate(entries["a.jpg123"]["regions"])}
    assert marks(read("via", write(tmp_path / "v.json", entries))) == VIA_MARKS
    rows = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    quoted = [json.dumps(shape).replace('"', '""') for shape in VIA_SHAPES]
    rows += [f'a.jpg,123,"{{}}",5,{i},"{text}","{{}}"' for i, text in enumerate(quoted)]
    rows += ['empty.jpg,5,"{}",0,0,"{}","{}"']
    assert marks(read("via", write(tmp_path / "v.csv", header + "\r\n".join(rows)))) == VIA_MARKS


def test_via_labels(tmp_path, capsys):
    def label(attributes, **options):
        entries = via(VIA_SHAPES[0])
        entries["a.jpg123"]["regions"][0]["region_attributes"] = attributes
        return read("via", write(tmp_path / "v.json", entries), **options)["a.jpg"].marks[0].label

    assert label({"anything": "head"}) == "head" and label({"age": "3", "type": "head"}) == "head"
    assert label({"type": {"head": True, "car": False}}) == "head"
    assert label({"age": 3, "size": "L"}, attribute="age") == "3"
    assert label({"age": 3, "size": "L"}) == "" and "have the attributes age, size" in capsys.readouterr().out
    assert "--label-attribute kind: is not there; found: age, size" in refused(
        "via", tmp_path / "v.json", attribute="kind"
    )


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <image id="0" name="train/a.jpg" width="200" height="150">
    <points label="head" points="20.5,30.00;60,70.25" occluded="0" z_order="0"></points>
    <points label="head" points="100,120" outside="0"></points>
    <box label="body" xtl="10" ytl="20" xbr="30" ybr="65" rotation="0"></box>
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
    found = read("cvat", write(tmp_path / "annotations.xml", CVAT), ["head", "body", "pose"])
    points = [point(20.5, 30, "head"), point(60, 70.25, "head"), point(100, 120, "head")]
    shapes = [(20, 42.5, 30, "body"), (2, 2, 4, "head"), (50, 60, 8, "head"), (12, 14.5, 6, "pose")]
    assert marks(found) == {"train/a.jpg": points + shapes, "train/b.jpg": []}
    assert found["train/a.jpg"].image_size == (200, 150)


def result(kind, key="k", **value):
    value = value | ({kind: ["head"]} if kind in ("keypointlabels", "rectanglelabels", "brushlabels") else {})
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
    found = read("labelstudio", write(tmp_path / "p.json", [task(*results), task(name="c.jpg"), skipped]))
    expected = [
        point(25, 30, "head"),
        (30, 52.5, 30, "head"),
        (90, 85, 20, "head"),  # 20 wide and 20 high, turned by 90 degrees around its upper left corner (100, 75)
        (100, 75, 12, "car"),
        (2, 3, 4.898979, "head"),
    ]
    assert marks(found) == {"/data/upload/1/0a1b2c3d-a.jpg": expected, "c.jpg": []}
    assert found["/data/upload/1/0a1b2c3d-a.jpg"].image_size == (200, 150)


def test_label_studio_names_of_images():
    assert image_of_address("/data/local-files/?d=photos/a%20b.jpg") == "photos/a b.jpg"
    assert image_of_address("https://example.org/x/a%20b.jpg?token=3") == "/x/a b.jpg"
    assert image_of_address("s3://bucket/x/a.jpg") == "/x/a.jpg"
    assert without_upload_prefix("x/0a1b2c3d-a-b.jpg") == "a-b.jpg" and without_upload_prefix("a-b.jpg") is None


@pytest.mark.parametrize(
    "contents",
    [
        {"annPoints": [[1.5, 2], [3, 4]]},
        {"image_info": image_info([[1.5, 2], [3, 4]])},
        {"frame": {"loc": [[1.5, 2], [3, 4]]}},
        {"whatever": [[1.5, 2], [3, 4]]},
    ],
)
def test_mat(tmp_path, contents):
    contents = {key: np.array(value) if isinstance(value, list) else value for key, value in contents.items()}
    scipy.io.savemat(tmp_path / "a.mat", contents)
    assert marks(read("mat", tmp_path / "a.mat")) == {"": TWO}


def test_mat_of_several_variables(tmp_path):
    scipy.io.savemat(tmp_path / "a.mat", {"a": np.zeros((2, 2)), "b": 3.0})
    assert "no key annPoints (keys found: a, b)" in refused("mat", tmp_path / "a.mat")


def images_of(*shapes):
    return f"<annotations><image name='a'>{''.join(shapes)}</image></annotations>"


VIA_HEADER = "filename,region_shape_attributes\n"
WRONG = {
    "csv of one image": [
        ("1,2\n1,5,3\n", "line 2: 3 columns instead of 2"),  # 1,5 in place of 1.5
        ("1,5,3\n", "line 1: 3 columns and no header"),
        ("1,5;3,2\n", "line 1: '1,5' is no finite number"),
        ("x,y,x\n1,2,3\n", "line 1: the header"),
        ("col,row\n1,2\n", "line 1: the header 'col, row' lacks x and y"),
        ("X,Y,BX,BY,Width,Height\n120,70,110,74,20,12\n", "line 2: the point (120, 70) lies outside of its box"),
        ('x,y\n"1,2\n3,4\n', "not valid CSV"),
        (b"x,y\n1,2\n\xff", "byte 9"),
    ],
    "csv": [
        ("x,y,label\n1,2,a\n", "the header 'x, y, label' lacks image;"),
        ("image,left,top\n", "lacks x and y; it must name each of image, x, y once, or the columns of a box"),
        ("image,x,y\n,1,2\n", "line 2: names no image"),
        ("a.jpg,1,5,2\n", "line 1: 4 columns"),
        ("a.jpg,1,\n", "line 1: ''"),
    ],
    "json of one image": [({"shapes": []}, "no list 'points'")],
    "json": [
        ([[1, 2], [3]], "no object"),
        ('{"a.jpg": [[1, 2]], "a.jpg": []}', "'a.jpg' is there twice"),
        ('{"a.jpg": [[1, 2]],\n\n', "line 3"),
    ],
    "coco": [
        ([], "no list 'images'"),
        (coco([{"image_id": 2, "bbox": [1, 2, 3, 4]}]), "entry 1: image_id '2'"),
        (coco([{"image_id": 1, "segmentation": [[1, 2]]}]), "is a 'region without bbox'"),
        (coco([{"image_id": 1, "bbox": [1, 2, 3]}]), "bbox: [1, 2, 3] is no"),
        (coco([{"image_id": 1, "bbox": [1, 2, -3, 4]}]), "-3 x 4"),
        (coco([{"image_id": 1, "keypoints": [1, 2]}]), "keypoints is [1, 2]"),
        (coco([], [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]), "entry 2: its id"),
        (coco([], [{"id": 1, "file_name": "a", "width": "9", "height": 9}]), "width: '9'"),
    ],
    "labelme": [
        ({"points": []}, "no list 'shapes'"),
        ({"shapes": [shape([[1, 2], [3, 4]], "line")]}, "shape 1: is a 'line'; mark objects as point, rectangle"),
        ({"shapes": [shape([[1, 2]], "point"), shape([], "polygon")]}, "shape 2: a polygon of 0 numbers"),
    ],
    "via": [
        ({"project": {"vid": 1}, "file": {}}, "no text 'filename'"),
        ({"a": {"filename": "a.jpg", "regions": [3]}}, "no list 'regions' of objects"),
        (via({"name": "polyline", "all_points_x": [1], "all_points_y": [2]}), "is a 'polyline'; mark objects as point"),
        (via({"name": "point", "cx": 3}), "cy: None"),
        (via({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [2]}), "do not fit"),
    ],
    "via csv": [
        (f"{VIA_HEADER}a.jpg,x\n", "line 2: its attributes ('x', '') are not JSON"),
        ("file,x,y\na.jpg,1,2\n", "line 2: no text 'filename'"),
    ],
    "cvat": [
        ("", "not valid XML"),
        ("<annotation><object/></annotation>", "is <annotation>; export 'CVAT for images 1.1'"),
        ("<annotations><track id='0'/></annotations>", "is CVAT for video, with tracks"),
        (images_of("<points points='1,2,3'/>"), "shape 1: points holds '1,2,3'"),
        (images_of("<polyline label='road' points='1,2;3,4'/>"), "shape 1: is a 'polyline'; mark objects as points"),
        ("<annotations><image name='a'/><image name='a'/></annotations>", "'a' is there twice"),
        ('<!DOCTYPE x [<!ENTITY e "ha">]><annotations>&e;</annotations>', "defines entities"),
    ],
    "labelstudio": [
        ({}, "no list 'tasks'"),
        ([task(name="words") | {"data": {"text": "words"}}], "lacks the name of its image"),
        ([task(result("brushlabels", rle=[1, 2]))], "is a 'brush'; mark objects as keypoint"),
        ([task(result("keypointlabels", x=1, y=2) | {"image_rotation": 90})], "turned by 90 degrees"),
        ([task() | {"annotations": [{"result": []}, {"result": []}]}], "has 2 annotations"),
    ],
    "pnt": [
        ({"classes": []}, "no object 'points'"),
        ({"points": {"a.jpg": {"head": [{"x": 1}]}}}, "point 1: y: None is no finite number"),
    ],
    "xy": [("1 2\n1 2 3\n", "line 2: 3 values; write the two values x y"), ("x y\n", "'x' is no finite number")],
    "yolo": [
        ("0 0.5 0.5 0.1", "4 values"),
        ("0 0.5 0.5 0.1 0.1 1.9", "6 values"),
        ("0 0.9 0.5 0.5 0.1 0.1", "6 values"),  # the confidence first: that box would leave the image
        ("0 100 25 20 20", "not in parts of the image"),
    ],
}


@pytest.mark.parametrize("form, contents, cause", [(form, *case) for form, cases in WRONG.items() for case in cases])
def test_what_is_wrong_is_named(tmp_path, form, contents, cause):
    named = form not in ("labelme", "xy", "yolo") and not form.endswith(" of one image")
    suffix = SUFFIXES.get(form, "csv" if form.startswith("csv") else "json")
    assert cause in refused(form.split()[0], write(tmp_path / f"a.{suffix}", contents), named=named)


@pytest.mark.parametrize(
    "form, contents, image",
    [
        ("coco", coco([{"image_id": 1, "category_id": 3}]), "a.jpg"),
        ("labelme", {"shapes": [shape([[1, 2], [3, 4]], "linestrip", "3")]}, ""),
        ("via", {"a": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "polyline"}}]}}, "a.jpg"),
        ("cvat", images_of("<mask label='3' rle='1'/>"), "a"),
        ("labelstudio", [task(result("brush", rle=[1], brushlabels=["3"]), name="a.jpg")], "a.jpg"),
    ],
)
def test_shapes_that_are_no_objects_matter_only_if_their_label_is_counted(tmp_path, form, contents, image):
    path = write(tmp_path / "a.json", contents)
    assert marks(read(form, path, ["head"], named=form != "labelme"))[image] == []
    for categories in ((), ("" if form == "via" else "3",)):
        assert "mark objects as " in refused(form, path, categories, named=form != "labelme")
