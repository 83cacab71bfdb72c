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
        "localisation": {"4": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}},
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
    """The elements of a page, as a browser would find them, and what its script is given of each image."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.tags, self.source = [], path.read_text(encoding="utf-8")
        self.scripts = re.findall("<script(.*?)>(.*?)</script>", self.source, re.DOTALL)
        self.images = [json.loads(text) for kind, text in self.scripts if 'class="image"' in kind]
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def texts(self, pattern):
        """What the groups of ``pattern`` hold, in the order of the page."""
        return [tuple(map(html.unescape, found.groups())) for found in re.finditer(pattern, self.source)]


def written(tmp_path, *folders):
    write_report(folders, tmp_path / "page.html")
    return Page(tmp_path / "page.html")


def opened(encoded):
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def test_a_line_holds_the_photograph_the_density_and_the_points():
    density = np.array([[0.0, 1.0, 4.0], [2.0, 3.0, -0.1]])
    image = np.full((500, 1000, 3), (200, 100, 50), np.uint8)
    line = json.loads(report_line("a.jpg", image, density, np.array([[1.26, 2, 7.0]]), np.zeros((0, 2)), 1.00004))
    photo, cells = (opened(line.pop(key)) for key in ("photo", "density"))
    facts = {"image": "a.jpg", "width": 1000, "height": 500, "density_max": 4, "predicted": 1}
    assert line == {**facts, "points": [[1.3, 2.0]], "heads": []}
    assert (photo.format, photo.size, cells.format, cells.mode) == ("JPEG", (640, 320), "PNG", "L")
    assert np.abs(np.asarray(photo).astype(int) - (200, 100, 50)).max() <= 4
    np.testing.assert_allclose(np.asarray(cells, float) * 4 / 255, np.clip(density, 0, None), atol=2 / 255)
    line = json.loads(report_line("a", image, np.zeros((1, 1)), None, None, 0.0))
    assert (line["points"], line["heads"], line["density_max"]) == (None, None, 0.0)


def test_names_cannot_become_markup_and_only_the_pages_own_scripts_may_run(tmp_path):
    names = [TAG, SCRIPT, "<!--<script>.jpg"]
    card = "javascript:alert(3).md"
    odd = write_results(tmp_path / "<b>", [1, 2, 3], [1.0, 2.0, 4.0], names, [[f"2{TAG}", SCRIPT]], model_card=card)
    page = written(tmp_path, odd)
    plain = write_results(tmp_path / "a", [1, 2, 3], [1.0, 2.0, 4.0], ["a", "b", "c"], [["d", "e"]], model_card="f")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in written(tmp_path, plain).tags]
    assert [image["image"] for image in page.images] == names
    assert page.texts("<h1>(.*)</h1>") == [("<b>",)] and page.texts("<title>(GST.*)</title>") == [("GST: <b>",)]
    assert page.texts("<li><b>(.*?)</b> (.*?)</li>") == [(f"2{TAG}", SCRIPT)]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    code = [text for kind, text in page.scripts if "json" not in kind]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code}
    assert len(code) == 2 and set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "default-src 'none'" in policy and "http" not in policy
    links = {attrs[name] for _, attrs in page.tags for name in ("src", "href") if attrs.get(name)}
    assert links == {"data:,", "javascript%3Aalert%283%29.md"}, "a path beside the page"


def test_the_page_holds_every_image_in_the_order_of_the_results(tmp_path):
    folder = write_results(tmp_path / "a", [3, None, 0], [1.25, 2.5, 0.0])
    page = written(tmp_path, folder)
    lines = map(json.loads, (folder / "report_data.jsonl").read_text().splitlines())
    for line, image in zip(lines, page.images, strict=True):
        (found,) = image.pop("results")
        assert image | found == line


def test_many_photographs_are_made_smaller(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    write_results(folder, [], [])
    photograph = np.zeros((480, 640, 3), np.uint8)
    lines = [report_line(name, photograph, np.ones((60, 80)), None, None, 1.0) for name in "ab"]
    (folder / "report_data.jsonl").write_text("\n".join(lines))
    assert [opened(image["photo"]).width for image in written(tmp_path, folder).images] == [640, 640]
    monkeypatch.setattr(report, "MANY", 1)
    assert [opened(image["photo"]).width for image in written(tmp_path, folder).images] == [320, 320]


def test_several_results_are_compared_image_by_image(tmp_path):
    """In folders of one name; the same input gives the same bytes."""
    first = write_results(tmp_path / "a" / "results", [10, 20, 30], [11.0, 19.0, 31.0])
    second = write_results(tmp_path / "b" / "results", [10, 20, 30], [13.0, 17.0, 33.0])
    page = written(tmp_path, first, second)
    assert page.texts("<td>(.*?)</td>")[9:12] == [("+2.00 (+2.00 to +2.00)",)] * 2 + [(str(first),)]
    assert [[found["predicted"] for found in image["results"]] for image in page.images] == [
        [11, 13],
        [19, 17],
        [31, 33],
    ]
    assert written(tmp_path, first, second).source == page.source
    assert written(tmp_path, second, first).texts("<td>(.*?)</td>")[11] == (str(first),)
    assert written(tmp_path, first, first).texts("<td>(.*?)</td>")[11] == ("no clear difference",)


def test_an_image_that_failed_in_one_result_is_left_out_and_without_truth_nothing_is_paired(tmp_path):
    first = write_results(tmp_path / "a", [1, 2], [1.0, 9.0], ["x", "y"])
    second = write_results(tmp_path / "b", [1], [1.0], ["x"], failed=[["y", "unreadable"]])
    page = written(tmp_path, first, second)
    assert [image["image"] for image in page.images] == ["x"] and "left out of every comparison: y<" in page.source
    folders = [write_results(tmp_path / name, [None], [2.0]) for name in "cd"]
    assert "there are no errors to show or to compare" in written(tmp_path, *folders).source


@pytest.mark.parametrize("truths, names", [([1, 2], ["x", "w"]), ([1, 2, 4], ["x", "y", "z"])])
def test_results_of_other_images_or_truths_are_refused(tmp_path, truths, names):
    first = write_results(tmp_path / "a", [1, 2, 3], [1.0, 2.0, 3.0], ["x", "y", "z"])
    other = write_results(tmp_path / "b", truths, [1.0] * len(truths), names)
    with pytest.raises(ValueError, match="b: '[wz]' is only in it or only in .*a, or has another .*; compare"):
        write_report([first, other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", '{"failed": []}', "not as test.py writes it (KeyError: 'weights_sha256')"),
        ("report_data.jsonl", None, "no such file"),
        ("report_data.jsonl", '{"image": "a"', "not as test.py writes it"),
    ],
)
def test_broken_input_is_one_line_that_names_the_file(tmp_path, name, content, message):
    folder = write_results(tmp_path / "a", [1], [1.0])
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    _, error = call("utils/evaluation/report.py", folder, "--out", tmp_path / "page.html", code=1)
    assert error.startswith(f"error: {folder / name}: {message}") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command_line(tmp_path):
    folder = write_results(tmp_path / "a", [1], [1.0])
    out, _ = call("utils/evaluation/report.py", folder)
    assert (folder / "report.html").is_file() and out.startswith(f"{folder / 'report.html'}: ")
    call("utils/evaluation/report.py", folder, folder, "--out", tmp_path / "both.html")
    assert len(Page(tmp_path / "both.html").images[0]["results"]) == 2
