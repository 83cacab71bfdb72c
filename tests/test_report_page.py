"""The page that shows results: what it holds, what it escapes, what it says about broken input. No browser needed."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import io
import json
import re

import numpy as np
import pytest
from commands import call
from PIL import Image

from utils.evaluation import report
from utils.evaluation.report import report_line, write_report

TAG, SCRIPT = "<img src=x onerror=alert(1)>.jpg", "</script><script>alert(2)</script>&amp;%%images%%.jpg"


def write_results(folder, truths, predictions, names=None, failed=(), **summary):
    """A results folder as test.py writes it; every image is 64 x 48 pixels, a truth of None is not annotated."""
    folder.mkdir(parents=True)
    names = names or [f"IMG_{i + 1:04d}.jpg" for i in range(len(truths))]
    lines = []
    for i, (name, truth, predicted) in enumerate(zip(names, truths, predictions, strict=True)):
        random = np.random.default_rng(i)
        density, points = random.random((6, 8)), None if truth is None else random.uniform(0, 48, (truth, 2))
        image = random.integers(0, 256, (48, 64, 3), np.uint8)
        density *= predicted / density.sum()
        lines.append(report_line(name, image, density, points, np.array([[8.0, 8.0]]), predicted))
    (folder / "report_data.jsonl").write_text("".join(f"{line}\n" for line in lines))
    summary = {
        "failed": list(failed),
        "localisation": {"4": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}, "qnrf": {"auc": None}},
        "model": {"name": "vgg"},
        "weights_sha256": "ab" * 32,
        "configuration": {"window": 512},
        "versions": {"torch": "2"},
        "images_per_second": 3.25,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(html.parser.HTMLParser):
    """The elements of a page, as a browser would find them, and by their names what the list is sorted by."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.rows, self.source = [], [], path.read_text(encoding="utf-8")
        self.scripts = re.findall("<script(.*?)>(.*?)</script>", self.source, re.DOTALL)
        self.feed(self.source)
        # What the images' views are made from, in the order of the list; plots are lists.
        data = [json.loads(text) for kind, text in self.scripts if "json" in kind]
        self.views = [value for value in data if isinstance(value, dict)]
        sources = [attrs["src"] for tag, attrs in self.tags if tag == "img"]
        self.photos = [source.removeprefix("data:image/jpeg;base64,") for source in sources]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "tr" and "data-groups" in attrs:
            self.rows.append({})
        if tag == "td" and "data-key" in attrs:
            self.rows[-1][attrs["class"].removeprefix("n ")] = attrs["data-key"]

    def text_of(self, pattern):
        return [html.unescape(found) for found in re.findall(pattern, self.source)]


def written(tmp_path, *folders):
    write_report(folders, tmp_path / "page.html")
    return Page(tmp_path / "page.html")


def opened(encoded):
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_line_holds_the_photograph_the_density_and_the_points():
    density = np.array([[0.0, 1.0, 4.0], [2.0, 3.0, -0.1]])
    image = np.full((500, 1000, 3), (200, 100, 50), np.uint8)
    line = json.loads(report_line("a.jpg", image, density, np.array([[1.26, 2, 7.0]]), np.zeros((0, 2)), 1.00004))
    found = {key: line[key] for key in ("image", "width", "height", "density_max", "predicted", "points", "heads")}
    assert list(found.values()) == ["a.jpg", 1000, 500, 4, 1, [[1.3, 2.0]], []]
    photo = opened(line["photo"])
    assert (photo.format, photo.size) == ("JPEG", (640, 320))
    assert np.abs(np.asarray(photo).astype(int) - (200, 100, 50)).max() <= 4
    cells = opened(line["density"])
    assert (cells.format, cells.mode) == ("PNG", "L")
    np.testing.assert_allclose(np.asarray(cells, float) * 4 / 255, np.clip(density, 0, None), atol=2 / 255)
    line = json.loads(report_line("a", image, np.zeros((1, 1)), None, None, 0.0))
    assert (line["points"], line["heads"], line["density_max"]) == (None, None, 0.0)


def test_names_cannot_become_markup(tmp_path):
    names = [TAG, SCRIPT, "<!--<script>.jpg"]
    odd = write_results(tmp_path / "<b>results", [1, 2, 3], [1.0, 2.0, 4.0], names, [[TAG, f"reason {SCRIPT}"]])
    page = written(tmp_path, odd)
    assert "<title>GST: &lt;b&gt;results</title>" in page.source
    plain = written(tmp_path, write_results(tmp_path / "a", [1, 2, 3], [1.0, 2.0, 4.0], ["a", "b", "c"], [["d", "e"]]))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [row["name"] for row in page.rows] == names
    assert page.text_of("<h1>(.*)</h1>") == ["<b>results"]
    assert page.text_of("<li><b>(.*?)</b>") == [TAG]
    assert page.text_of("<li><b>.*?</b> (.*?)</li>") == [f"reason {SCRIPT}"]


def test_only_the_pages_own_scripts_may_run_and_nothing_is_fetched(tmp_path):
    page = written(tmp_path, write_results(tmp_path / "a", [1], [2.0], model_card="javascript:alert(3).md"))
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    code = [text for kind, text in page.scripts if "json" not in kind]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code}
    assert len(code) == 2 and set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "default-src 'none'" in policy and "http" not in policy
    links = [attrs[name] for _, attrs in page.tags for name in ("src", "href") if attrs.get(name)]
    assert links and all(link.startswith("data:") for link in links)


def test_the_page_holds_every_image_in_the_order_of_the_results(tmp_path):
    folder = write_results(tmp_path / "a", [3, None, 0], [1.25, 2.5, 0.0])
    lines = (folder / "report_data.jsonl").read_text().splitlines()
    page = written(tmp_path, folder)
    keys = "thumb", "name", "truth", "predicted", "error", "relative", "size"
    assert [tuple(row[key] for key in keys) for row in page.rows] == [
        ("0", "IMG_0001.jpg", "3.0", "1.25", "1.75", str(1.75 / 3), "3072"),
        ("1", "IMG_0002.jpg", "", "2.5", "", "", "3072"),
        ("2", "IMG_0003.jpg", "0.0", "0.0", "0.0", "", "3072"),
    ]
    for line, photo, view in zip(lines, page.photos, page.views, strict=True):
        source = json.loads(line)
        assert (photo, view["points"]) == (source["photo"], source["points"])
        assert view["results"] == [{"label": "a"} | {key: source[key] for key in ("density", "density_max", "heads")}]


def test_many_photographs_are_made_smaller(tmp_path, monkeypatch):
    folder = write_results(tmp_path / "a", [1], [1.0])
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    line = report_line("IMG_0001.jpg", noise, np.ones((60, 80)), np.zeros((1, 2)), None, 1.0)
    (folder / "report_data.jsonl").write_text(line)
    sides = []
    for budget in (10**9, len(line) // 4, 100):
        monkeypatch.setattr(report, "PHOTOGRAPHS_BYTES", budget)
        (photo,) = written(tmp_path, folder).photos
        sides.append(opened(photo).width)
    assert sides[0] == 640 and 300 <= sides[1] <= 330 and sides[2] == report.LEAST_PHOTO_SIDE


def test_the_paired_difference_of_known_errors(tmp_path):
    """In folders of one name; the same input gives the same bytes."""
    first = write_results(tmp_path / "a" / "results", [10, 20, 30], [11.0, 19.0, 31.0])
    second = write_results(tmp_path / "b" / "results", [10, 20, 30], [13.0, 17.0, 33.0])
    page = written(tmp_path, first, second)
    for name in ("mae", "mse"):
        template = rf'data-paired="{name}-1">(.*?)</b>\s*<span class="quiet">(.*?)</span>'
        assert re.findall(template, page.source) == [("+2.00", "(+2.00 to +2.00)")]
    assert f"{first} is better" in page.source and "(3 images, bootstrap)" in page.source
    assert [result["label"] for result in page.views[0]["results"]] == [str(first), str(second)]
    keys = page.text_of('class="n result" role="cell" data-label=".*?" data-key="(.*?)"')
    assert keys == ["1.0", "3.0"] * 3
    assert written(tmp_path, first, second).source == page.source


def test_an_image_that_failed_in_one_result_is_left_out_and_without_truth_nothing_is_paired(tmp_path):
    first = write_results(tmp_path / "a", [1, 2], [1.0, 9.0], ["x", "y"])
    second = write_results(tmp_path / "b", [1], [1.0], ["x"], failed=[["y", "unreadable"]])
    page = written(tmp_path, first, second)
    assert [row["name"] for row in page.rows] == ["x"] and "left out of every comparison: y<" in page.source
    assert page.text_of('data-total="mae-.">(.*?)<') == ["0.00", "0.00"]
    folders = [write_results(tmp_path / name, [None], [2.0]) for name in "cd"]
    assert "No image is annotated: the errors cannot be compared." in written(tmp_path, *folders).source


def test_results_of_other_images_or_truths_are_refused(tmp_path):
    first = write_results(tmp_path / "a", [1, 2, 3], [1.0, 2.0, 3.0], ["x", "y", "z"])
    other = write_results(tmp_path / "b", [1, 2], [1.0, 2.0], ["x", "w"])
    with pytest.raises(ValueError, match="1 in common, 2 only in the first, 1 only in the other; compare"):
        write_report([first, other], tmp_path / "page.html")
    truth = write_results(tmp_path / "c", [1, 2, 4], [1.0, 2.0, 3.0], ["x", "y", "z"])
    with pytest.raises(ValueError, match="'z' has the truth 4, in .*a it is 3"):
        write_report([first, truth], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "no such file"),
        ("summary.json", '{"failed": ["a"]}', "not as test.py writes it"),
        ("report_data.jsonl", None, "no such file"),
        ("report_data.jsonl", '{"image": "a"', "line 1: not as test.py writes it"),
        ("report_data.jsonl", '{"image": "a"}', "line 1: not as test.py writes it (KeyError: 'points')"),
    ],
)
def test_broken_input_is_one_line_that_names_the_file(tmp_path, name, content, message):
    folder = write_results(tmp_path / "a", [1], [1.0])
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises((ValueError, OSError), match=re.escape(message)) as caught:
        write_report([folder], tmp_path / "page.html")
    assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_the_command_line(tmp_path):
    folder = write_results(tmp_path / "a", [1], [1.0])
    out, _ = call("utils/evaluation/report.py", folder)
    assert (folder / "report.html").is_file() and out.startswith(f"{folder / 'report.html'}: ")
    out, _ = call("utils/evaluation/report.py", folder, folder, "--out", tmp_path / "both.html")
    assert len(Page(tmp_path / "both.html").views[0]["results"]) == 2
    _, error = call("utils/evaluation/report.py", tmp_path / "missing", code=1)
    assert error.startswith(f"error: {tmp_path / 'missing'}: no such folder") and error.count("\n") == 1
