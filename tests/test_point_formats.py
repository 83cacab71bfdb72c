"""Each annotation format of common tools: what it may look like, and what it may not."""

import json
import math

import pytest
from raw_data import write

from datasets.raw.dots import read_points_json
from datasets.raw.lines import read_yolo
from datasets.raw.point_formats import read_coco, read_labelme
from datasets.raw.tables import read_csv
from datasets.raw.via import read_via

BOM = b"\xef\xbb\xbf"


def marks(found, name=""):
    """x, y, size of each mark; no size is None."""
    return [[m.x, m.y, None if math.isnan(m.size) else m.size] for m in found[name].marks]


def one_line(read, path, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        read(path, *arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and ";" in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    "text",
    [
        "1.5,2\n3,4e0\n",
        "x,y\n1.5,2\n3,4\n",
        "y,X\n2,1.5\n4,3\n",
        "id;label;x;y\n1;a;1.5;2\n2;b;3;4\n",
        "x\ty\r\n1.5\t2\r\n\r\n3\t4\r\n",
        BOM + b"x,y\r\n1.5,2\r\n3,4",
        '"x","y"\n"1.5"," 2 "\n3,4\n',
        "x,y\r1.5,2\r3,4\r",
    ],
)
def test_csv_of_one_image(tmp_path, text):
    assert marks(read_csv(write(tmp_path / "a.csv", text), named=False)) == [[1.5, 2, None], [3, 4, None]]


@pytest.mark.parametrize("text", ["", "x,y\n", "\n\n", BOM])
def test_csv_of_an_image_without_points(tmp_path, text):
    assert marks(read_csv(write(tmp_path / "a.csv", text), named=False)) == []


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,1,2\nb.jpg,3,4\na.jpg,5,6\nc.jpg,,\n",
        "image,x,y\na.jpg,1,2\nb.jpg,3,4\na.jpg,5,6\nc.jpg,,\n",
        "y;filename;x;who\n2;a.jpg;1;p\n4;b.jpg;3;\n6;a.jpg;5;q\n;c.jpg;;\n",
    ],
)
def test_csv_of_all_images(tmp_path, text):
    found = read_csv(write(tmp_path / "all.csv", text))
    assert marks(found, "a.jpg") == [[1, 2, None], [5, 6, None]] and marks(found, "b.jpg") == [[3, 4, None]]
    assert marks(found, "c.jpg") == [] and list(found) == ["a.jpg", "b.jpg", "c.jpg"]


def test_csv_names_of_all_kinds(tmp_path):
    found = read_csv(write(tmp_path / "all.csv", '"a, b.jpg",1,2\nзал/фото 1.JPG,3,4\nC:\\d\\e.jpg,5,6\n'))
    assert list(found) == ["a, b.jpg", "зал/фото 1.JPG", "C:\\d\\e.jpg"]


@pytest.mark.parametrize(
    "text, cause",
    [
        ("1,2\n1,5,3\n", "line 2: 3 columns instead of 2"),  # 1,5 in place of 1.5
        ("1,5,3\n", "line 1: 3 columns and no header"),
        ("x,y\n1,5,3,2\n", "line 2: 4 columns"),
        ("x;y\n1,5,0;3\n", "line 2: '1,5,0' is no finite number"),
        ("1,5;3,2\n", "line 1: '1,5' is no finite number"),
        ("x,y\n1,\n", "line 2: ''"),
        ("1,2\n3\n", "line 2: 1 columns"),
        ("1 2\n", "line 1: 1 columns and no header"),
        ("1,2\nnan,3\n", "line 2: 'nan'"),
        ("1,2\n3,-inf\n", "line 2: '-inf'"),
        ("1,2\n3,1e999\n", "line 2: '1e999'"),
        ("1,2\n3,1_0\n", "line 2: '1_0'"),
        ("x,y\n1,2\nx,y\n", "line 3: 'x'"),
        ("x,y,x\n1,2,3\n", "line 1: the header"),
        ("x,count\n1,2\n", "line 1: the header"),
        ("col,row\n1,2\n", "line 1: the header 'col, row' lacks x and y"),
        ('x,y\n"1,2\n3,4\n', "not valid CSV"),
        ("x,y\n1,\0\n", "line 2"),
        ("x,y\n1,2\n".encode("utf-16"), "not a UTF-8"),
        (b"x,y\n1,2\n\xff", "byte 9"),
        ("x,y\n" + "1" * 200_000 + ",1\n", "line 2"),
    ],
)
def test_csv_that_is_wrong(tmp_path, text, cause):
    assert cause in one_line(read_csv, write(tmp_path / "a.csv", text), named=False)


@pytest.mark.parametrize(
    "text, cause",
    [
        ("x,y\n1,2\n", "must name each of image, x, y"),
        ("image,name,x,y\na,b,1,2\n", "must name each of image, x, y"),
        ("image,x,y\n,1,2\n", "line 2: names no image"),
        ("a.jpg,1,5,2\n", "line 1: 4 columns"),
        ("a.jpg,1\n", "line 1: 2 columns"),
        ("a.jpg,1,2\nb.jpg,3\n", "line 2: 2 columns"),
        ("a.jpg,1,\n", "line 1: ''"),
    ],
)
def test_csv_of_all_that_is_wrong(tmp_path, text, cause):
    assert cause in one_line(read_csv, write(tmp_path / "all.csv", text))


def test_json_points(tmp_path):
    for contents in ([[1, 2.5], [3, 4]], {"points": [[1, 2.5], [3, 4]], "by": "me"}):
        assert marks(read_points_json(write(tmp_path / "a.json", contents), named=False)) == [
            [1, 2.5, None],
            [3, 4, None],
        ]
    assert marks(read_points_json(write(tmp_path / "a.json", BOM + b"[]\r\n"), named=False)) == []
    found = read_points_json(write(tmp_path / "all.json", {"a.jpg": [[1, 2]], "зал.jpg": {"points": []}}))
    assert marks(found, "a.jpg") == [[1, 2, None]] and marks(found, "зал.jpg") == []


@pytest.mark.parametrize(
    "contents, named, cause",
    [
        ({"shapes": []}, False, "no key points"),
        ("3", False, "int in place of the list"),
        ([{"x": 1, "y": 2}], False, "point 1"),
        ([[1, 2], [3]], True, "no object"),
        ({"a.jpg": [[1, 2], ["3", 4]]}, True, "'a.jpg': point 2: '3'"),
        ({"a.jpg": {"x": 1}}, True, "'a.jpg': no key points"),
        ('{"a.jpg": [[1, 2]], "a.jpg": []}', True, "'a.jpg' is there twice"),
        ('{"a.jpg": [[1, 2]],\n\n', True, "line 3"),
    ],
)
def test_json_that_is_wrong(tmp_path, contents, named, cause):
    assert cause in one_line(read_points_json, write(tmp_path / "a.json", contents), named=named)


def coco(annotations, images=({"id": 1, "file_name": "a.jpg"}, {"id": "b", "file_name": "d/b.jpg"}), **more):
    return {"images": list(images), "annotations": annotations, **more}


def test_coco_boxes_and_keypoints(tmp_path, capsys):
    annotations = [
        {"image_id": 1, "bbox": [10, 20, 4, 9], "category_id": 7},
        {"image_id": 1, "keypoints": [0, 0, 0, 3, 4, 2], "num_keypoints": 1, "category_id": 8},
        {"image_id": 1, "bbox": [3, 4, 0, 0], "keypoints": [3.5, 4, 1]},
        {"image_id": 1, "bbox": [5, 6, 0, 2]},
        {"image_id": 1, "keypoints": [0, 0, 2, 6, 9, 1, 3, 50, 0]},
        {"image_id": 1, "bbox": [0, 0, 2, 2], "keypoints": [9, 9, 2]},
    ]
    categories = [{"id": 7, "name": "head"}]
    found = read_coco(write(tmp_path / "c.json", coco(annotations, categories=categories)))
    assert marks(found, "a.jpg") == [
        [12, 24.5, 6], [3, 4, None], [3.5, 4, None], [5, 7, None], [3, 4.5, pytest.approx(54**0.5)], [1, 1, 2]
    ]  # fmt: skip
    assert [mark.label for mark in found["a.jpg"].marks][:3] == ["head", "8", ""]
    assert marks(found, "d/b.jpg") == []
    assert "1 annotations have several visible keypoints" in capsys.readouterr().out


def test_coco_crowd_regions_are_not_counted_and_said(tmp_path, capsys):
    annotations = [
        {"image_id": 1, "bbox": [0, 0, 90, 90], "iscrowd": 1},
        {"image_id": 1, "bbox": [0, 0, 2, 2], "iscrowd": 0, "ignore": 0},
        {"image_id": 1, "bbox": [5, 5, 2, 2], "iscrowd": 0, "ignore": 1},
    ]
    assert marks(read_coco(write(tmp_path / "c.json", coco(annotations))), "a.jpg") == [[1, 1, 2]]
    assert "2 regions marked iscrowd or ignore are not counted" in capsys.readouterr().err


def test_coco_says_the_size_of_images(tmp_path):
    images = [
        {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.jpg", "width": 0, "height": 0},
    ]
    found = read_coco(write(tmp_path / "c.json", coco([], images)))
    assert found["a.jpg"].image_size == (64, 48) and found["b.jpg"].image_size is None


@pytest.mark.parametrize(
    "contents, cause",
    [
        ([], "no list 'images'"),
        ({"images": []}, "no list 'annotations'"),
        ({"images": [1], "annotations": []}, "no list 'images'"),
        (coco([], categories=3), "no list 'categories'"),
        (coco([{"image_id": 2, "bbox": [1, 2, 3, 4]}]), "entry 1: image_id 2"),
        (coco([{"image_id": "a", "bbox": [1, 2, 3, 4]}]), "entry 1: image_id 'a'"),
        (coco([{"image_id": [1], "bbox": [1, 2, 3, 4]}]), "entry 1: image_id [1]"),
        (coco([{"bbox": [1, 2, 3, 4]}]), "image_id None"),
        (coco([{"image_id": 1, "segmentation": [[1, 2]]}]), "neither bbox nor"),
        (coco([{"image_id": 1, "bbox": [1, 2, 3]}]), "bbox is [1, 2, 3]"),
        (coco([{"image_id": 1, "bbox": {"x": 1}}]), "bbox is {'x': 1}"),
        (coco([{"image_id": 1, "bbox": [1, 2, 3, "4"]}]), "'4' is no finite"),
        (coco([{"image_id": 1, "bbox": [1, 2, -3, 4]}]), "-3 x 4"),
        (coco([{"image_id": 1, "keypoints": [1, 2]}]), "keypoints is [1, 2]"),
        (coco([{"image_id": 1, "keypoints": [1, 2, 0]}]), "neither bbox nor"),
        (coco([], [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]), "entry 2"),
        (coco([], [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]), "entry 2"),
        (coco([], [{"id": 1}]), "lacks its id or file_name"),
        (coco([], [{"id": 1, "file_name": "a", "width": "9", "height": 9}]), "width: '9'"),
    ],
)
def test_coco_that_is_wrong(tmp_path, contents, cause):
    assert cause in one_line(read_coco, write(tmp_path / "c.json", contents))


def test_yolo(tmp_path):
    path = write(tmp_path / "a.txt", BOM + b"0 0.5 0.25 0.1 0.2\r\n\r\n3 1.0 0 0 0\r\n")
    found = read_yolo(path, 200, 100).marks
    assert [(m.x, m.y, m.label) for m in found] == [(100, 25, "0"), (200, 0, "3")]
    assert found[0].size == 20 and math.isnan(found[1].size)
    assert read_yolo(write(tmp_path / "a.txt", ""), 200, 100).marks == []


@pytest.mark.parametrize(
    "line, cause",
    [
        ("0 0.5 0.5 0.1", "4 values"),
        ("0 0.5 0.5 0.1 0.1 1.9", "6 values"),
        ("0 0.9 0.5 0.5 0.1 0.1", "6 values"),  # the confidence first: that box would leave the image
        ("0,0.5,0.5,0.1,0.1", "1 values"),
        ("0 0,5 0.5 0.1 0.1", "'0,5'"),
        ("0 100 25 20 20", "not in parts of the image"),
        ("0 0.5 0.5 -0.1 0.1", "not in parts of the image"),
        ("0 0.5 nan 0.1 0.1", "'nan'"),
    ],
)
def test_yolo_that_is_wrong(tmp_path, line, cause):
    message = one_line(read_yolo, write(tmp_path / "a.txt", f"0 0.5 0.5 0.1 0.1\n{line}\n"), 200, 100)
    assert "line 2: " in message and cause in message


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
    contents = {"shapes": shapes, "imageWidth": 64, "imageHeight": 48, "imagePath": "..\\a.jpg", "imageData": None}
    found = read_labelme(write(tmp_path / "a.json", contents))
    box, square = [12, 24.5, 6], [2, 2, 4]
    assert marks(found) == [[3, 4, None], box, box, box, square, square, [10, 10, 10]]
    assert found[""].image_size == (64, 48) and found[""].marks[1].label == "q"
    assert marks(read_labelme(write(tmp_path / "a.json", {"shapes": []}))) == []


@pytest.mark.parametrize(
    "contents, cause",
    [
        ({"points": []}, "no list 'shapes'"),
        ([], "no list 'shapes'"),
        ({"shapes": [shape([[1, 2], [3, 4]], "line")]}, "shape 1: is a 'line'"),
        ({"shapes": [shape([[1, 2]], "point"), shape([], "polygon")]}, "shape 2: a polygon of 0 points"),
        ({"shapes": [shape([[1, 2], [3, 4]], "point")]}, "a point of 2 points"),
        ({"shapes": [shape([[1, "2"]], "point")]}, "'2' is no finite"),
        ({"shapes": [{"label": "a"}]}, "NoneType in place of the list"),
        ({"shapes": [shape([[1, 2]], ["point"])]}, "shape 1"),
    ],
)
def test_labelme_that_is_wrong(tmp_path, contents, cause):
    assert cause in one_line(read_labelme, write(tmp_path / "a.json", contents))


VIA_SHAPES = [
    {"name": "point", "cx": 3, "cy": 4},
    {"name": "rect", "x": 10, "y": 20, "width": 4, "height": 9},
    {"name": "circle", "cx": 10, "cy": 10.5, "r": 5},
    {"name": "ellipse", "cx": 10, "cy": 10, "rx": 2, "ry": 8, "theta": 0},
    {"name": "polygon", "all_points_x": [0, 4, 2], "all_points_y": [0, 0, 4]},
]
VIA_MARKS = [[3, 4, None], [12, 24.5, 6], [10, 10.5, 10], [10, 10, 8], [2, 2, 4]]


def via(*shapes, name="a.jpg"):
    regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    return {f"{name}123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}}


def test_via(tmp_path):
    entries = via(*VIA_SHAPES) | via(name="empty.jpg")
    for contents in (entries, {"_via_settings": {}, "_via_img_metadata": entries}):
        found = read_via(write(tmp_path / "v.json", contents))
        assert marks(found, "a.jpg") == VIA_MARKS and marks(found, "empty.jpg") == []
    entries["a.jpg123"]["regions"] = {str(i): region for i, region in enumerate(entries["a.jpg123"]["regions"])}
    assert marks(read_via(write(tmp_path / "v.json", entries)), "a.jpg") == VIA_MARKS


def test_via_table(tmp_path):
    rows = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    quoted = [json.dumps(shape).replace('"', '""') for shape in VIA_SHAPES]
    rows += [f'a.jpg,123,"{{}}",5,{i},"{text}","{{}}"' for i, text in enumerate(quoted)]
    rows += ['empty.jpg,5,"{}",0,0,"{}","{}"']
    found = read_via(write(tmp_path / "v.csv", "\r\n".join(rows)))
    assert marks(found, "a.jpg") == VIA_MARKS and marks(found, "empty.jpg") == []
    assert "line 2: region_shape_attributes is 'x'" in one_line(
        read_via, write(tmp_path / "v.csv", "filename,region_shape_attributes\na.jpg,x\n")
    )
    assert "line 2: lacks" in one_line(read_via, write(tmp_path / "v.csv", "file,x,y\na.jpg,1,2\n"))
    assert "line 2: is a 'lion'" in one_line(
        read_via, write(tmp_path / "v.csv", 'filename,region_shape_attributes\na.jpg,"{""name"":""lion""}"\n')
    )


@pytest.mark.parametrize(
    "contents, cause",
    [
        ([], "not a project"),
        ({"_via_img_metadata": []}, "not a project"),
        ({"project": {"vid": 1}, "file": {}}, "lacks filename or regions"),
        ({"a": {"filename": "a.jpg"}}, "lacks filename or regions"),
        ({"a": {"filename": "a.jpg", "regions": [3]}}, "region 1: is a None"),
        (via({"name": "polyline", "all_points_x": [1], "all_points_y": [2]}), "is a 'polyline'"),
        (via({"name": "point", "cx": 3}), "cy: None"),
        (via({"name": "circle", "cx": 3, "cy": 4, "r": -1}), "-2 x -2"),
        (via({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [2]}), "do not fit"),
        (via({"name": "polygon", "all_points_x": [], "all_points_y": []}), "do not fit"),
        (via() | {"other": via()["a.jpg123"]}, "there twice"),
    ],
)
def test_via_that_is_wrong(tmp_path, contents, cause):
    assert cause in one_line(read_via, write(tmp_path / "v.json", contents))
