"""The page in a real browser: what is shown, sorted, searched, clicked and painted. Skipped where there is no Chromium."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from test_report_page import SCRIPT, TAG, write_results

from utils.evaluation.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (requirements-test.txt)")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no Chromium with its driver here (Debian: apt-get install chromium chromium-driver)",
)

TRUTHS = [10, 200, 30, 44, 50, 60, 70, 80, 90, 100, 110, 0]
PREDICTIONS = [11.0, 150.0, 30.5, 40.0, 57.0, 66.0, 68.0, 80.25, 99.0, 112.0, 90.0, 0.0]
NAMES = [f"IMG_{i + 1:04d}.jpg" for i in range(10)] + [TAG, SCRIPT]
WORST_FIRST = sorted(NAMES, key=lambda name: -abs(PREDICTIONS[NAMES.index(name)] - TRUTHS[NAMES.index(name)]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    exact = [float(truth) for truth in TRUTHS]
    failed = [[TAG + "2", "unreadable"]]
    write_results(root / "vgg", TRUTHS, PREDICTIONS, NAMES, failed)
    write_results(root / "other", TRUTHS, [*exact[:-1], 8.0], NAMES)
    write_results(root / "third", TRUTHS, [value + 3 for value in exact], NAMES)
    write_results(root / "video", [None] * 3, [5.0, 7.0, 6.0])
    write_results(root / "none", [], [], failed=failed)
    write_results(root / "near", [62, 77, 70, 70], [62.6, 58.9, 64.7, 51.9])
    for name in ("vgg", "video", "none", "near"):
        write_report([root / name], root / f"{name}.html")
    write_report([root / name for name in ("vgg", "other", "third")], root / "three.html")
    return root


@pytest.fixture(scope="module")
def chromium():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1440,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium):
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    yield chromium
    # What the tests do themselves, reading canvases again and again, is advised against under "rendering".
    assert [entry for entry in chromium.get_log("browser") if entry["source"] != "rendering"] == []


def show(browser, page):
    browser.get(page.as_uri())
    wait(browser, "document.querySelectorAll('.plot .points path').length > 0")


def wait(browser, expression):
    """The value of an expression of JavaScript once it is true."""
    return WebDriverWait(browser, 20).until(lambda _: browser.execute_script(f"return {expression}"))


def find(browser, selector):
    return browser.find_element("css selector", selector)


def text(browser, selector):
    return find(browser, selector).text


def texts(browser, selector):
    return browser.execute_script(f"return [...document.querySelectorAll('{selector}')].map(cell => cell.textContent)")


def choose(browser, choice):
    """A filter, or an option of a selection, by how it begins."""
    browser.find_element("xpath", f"//*[self::option or self::label][starts-with(., '{choice}')]").click()


def names(browser):
    return texts(browser, "#list td:nth-child(2)")


def open_first(browser):
    find(browser, "#list tbody button").click()
    wait(browser, "document.querySelectorAll('#stage .heatmaplayer image').length > 0")


@pytest.mark.parametrize("page", ["near", "vgg"])
def test_every_axis_has_numbers(browser, pages, page):
    show(browser, pages / f"{page}.html")
    for axis in "xy":
        count = f"[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.{axis}tick text').length)"
        labels = wait(browser, f"(counts => counts.every(n => n > 1) && counts)({count})")
        assert len(labels) == 2 and max(labels) < 12


def test_the_totals_are_those_of_the_counts(browser, pages):
    show(browser, pages / "vgg.html")
    assert texts(browser, "header b") == ["13", "12", "1"]
    errors = np.abs(np.array(PREDICTIONS) - TRUTHS)
    expected = [errors.mean(), np.sqrt((errors**2).mean()), np.mean(errors[:-1] / TRUTHS[:-1])]
    tiles = [float(value.replace(",", "")) for value in texts(browser, ".value")]
    assert tiles[:3] == pytest.approx(expected, rel=5e-3) and tiles[3] == round(sum(PREDICTIONS))
    low, high = map(float, re.search(r"([\d.]+) to ([\d.]+)", text(browser, ".tile .quiet")).groups())
    assert low < errors.mean() < high
    assert text(browser, "#failures li") == f"{TAG}2 unreadable"


def test_the_list_is_sorted_searched_and_filtered(browser, pages):
    show(browser, pages / "vgg.html")
    assert names(browser) == WORST_FIRST
    choose(browser, "Error, a")
    assert names(browser)[0] in (NAMES[11], NAMES[7]) and names(browser)[-1] == WORST_FIRST[0]
    choose(browser, "Truth, d")
    assert names(browser)[:2] == [NAMES[1], NAMES[10]]
    choose(browser, "Relative, d")
    assert names(browser)[0] == NAMES[1] and names(browser)[-1] == NAMES[11], "no relative error: last"
    choose(browser, "As evaluated")
    assert names(browser) == NAMES
    choose(browser, "Image, a")
    assert [name for name in names(browser) if name.startswith("IMG")] == NAMES[:10]
    find(browser, "#search").send_keys("img_000")
    assert len(names(browser)) == 9 and text(browser, "#shown") == "9 of 12 images"
    choose(browser, "Under")
    assert names(browser) == [NAMES[1], NAMES[3], NAMES[6]]
    find(browser, "#search").send_keys("nothing like this")
    assert names(browser) == [] and text(browser, "#shown") == "0 of 12 images"
    find(browser, "#search").send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    choose(browser, "Worst")
    assert set(names(browser)) == set(WORST_FIRST[:2])


def test_an_image_is_opened_beside_its_density(browser, pages):
    show(browser, pages / "vgg.html")
    open_first(browser)
    cells = wait(browser, "stage.data.find(trace => trace.type === 'heatmap').z")
    assert (len(cells), len(cells[0])) == (6, 8) and sum(map(sum, cells)) == pytest.approx(150, rel=0.01)
    photograph = "document.querySelector('#list tbody img').src"
    assert wait(browser, f"[...document.querySelectorAll('#stage image')].some(i => i.href.baseVal === {photograph})")
    assert wait(browser, "stage.data.map(trace => trace.name).slice(0, 2)") == ["Truth 200", "Heads, vgg 1"]
    assert wait(browser, "stage._fullLayout.yaxis2.range") == [48, 0]
    origin = ScrollOrigin.from_element(find(browser, "#stage .nsewdrag"), 0, 0)
    ActionChains(browser).scroll_from_origin(origin, 0, -200).perform()
    wait(browser, "stage._fullLayout.xaxis.range[0] > 1")
    assert wait(browser, "stage._fullLayout.xaxis.range") == wait(browser, "stage._fullLayout.xaxis2.range")


def test_the_viewer_walks_through_the_list_as_it_is_shown(browser, pages):
    show(browser, pages / "vgg.html")
    choose(browser, "Over")
    listed = names(browser)
    open_first(browser)
    assert text(browser, "#viewer-title") == listed[0] and text(browser, "#viewer-position") == f"1 / {len(listed)}"
    find(browser, "#next").click()
    assert text(browser, "#viewer-title") == listed[1]
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert text(browser, "#viewer-title") == listed[2]
    ActionChains(browser).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT).perform()
    assert text(browser, "#viewer-title") == listed[0] and not find(browser, "#previous").is_enabled()


def test_a_point_of_a_plot_shows_and_opens_its_image(browser, pages):
    show(browser, pages / "vgg.html")
    place = "plots[0].data[1].customdata.indexOf(0)"
    path = f"plots[0].querySelectorAll('.scatterlayer .trace')[1].querySelectorAll('.points path')[{place}]"
    x, y = wait(browser, f"(box => [box.x + box.width / 2, box.y + box.height / 2])({path}.getBoundingClientRect())")
    mouse = ActionChains(browser)
    mouse.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    mouse.perform()
    label = wait(browser, "document.querySelector('.plot .hoverlayer .hovertext')?.textContent")
    assert label.startswith("IMG_0001.jpgTruth 10Predicted 11.0Error +1.0Relative +10.0%")
    ActionChains(browser).click().perform()
    wait(browser, "document.getElementById('viewer').open")
    assert text(browser, "#viewer-title") == "IMG_0001.jpg" and "11.0" in text(browser, "#facts")
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not find(browser, "#viewer").is_displayed()


def test_several_results_are_compared(browser, pages):
    show(browser, pages / "three.html")
    changes = texts(browser, "#list td[data-label=Difference]")
    assert names(browser)[0] == NAMES[11] and changes[0] == "+3.0" and changes[-1] == "\N{MINUS SIGN}50.0"
    choose(browser, "third nearer")
    assert names(browser) == []
    choose(browser, "other nearer")
    assert names(browser)[-1] == NAMES[1] and NAMES[11] not in names(browser)
    assert wait(browser, "plots[0].layout.yaxis.title.text") == "error of other"
    choose(browser, "third")
    assert wait(browser, "plots[0].layout.yaxis.title.text") == "error of third"
    choose(browser, "All")
    open_first(browser)
    assert texts(browser, "#facts td")[1:4] == ["0.0 0.0", "8.0 +8.0", "3.0 +3.0"]
    sums = wait(browser, "stage.data.filter(trace => trace.z).map(({z}) => z.flat().reduce((sum, cell) => sum + cell))")
    assert sums == pytest.approx([0, 8, 3], rel=0.01)


def test_images_without_truth_and_a_result_without_images(browser, pages):
    show(browser, pages / "video.html")
    assert names(browser) == ["IMG_0002.jpg", "IMG_0003.jpg", "IMG_0001.jpg"]
    assert texts(browser, "#list th") == ["", "Image", "Predicted", "Size"] and len(texts(browser, ".tile")) == 2
    open_first(browser)
    assert wait(browser, "stage.data[0].name") == "Truth 0" and "7.0" in text(browser, "#facts")
    browser.get((pages / "none.html").as_uri())
    assert text(browser, "#failures h2") == "1 failed" and text(browser, "#shown") == "0 images"


@pytest.mark.parametrize("scheme, color", [("light", "rgba(247, 246, 243, 1)"), ("dark", "rgba(18, 20, 22, 1)")])
def test_light_and_dark(browser, pages, scheme, color):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    show(browser, pages / "near.html")
    assert find(browser, "body").value_of_css_property("background-color") == color


@pytest.mark.parametrize("page", ["vgg", "three", "video"])
def test_nothing_is_wider_than_a_phone(browser, pages, page):
    size = {"width": 375, "height": 812, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    show(browser, pages / f"{page}.html")
    assert wait(browser, "document.documentElement.scrollWidth") == 375
    open_first(browser)
    box = find(browser, "#close").rect
    assert 0 < box["x"] < box["x"] + box["width"] <= 375
