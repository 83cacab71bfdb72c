"""The page in a real browser: what is shown, sorted, searched, clicked and painted. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import shutil

import pytest
from test_report_page import SCRIPT, TAG, write_results

from utils.evaluation.report import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (requirements-test.txt)")
from selenium.webdriver.common.action_chains import ActionChains
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
    first = write_results(root / "vgg", TRUTHS, PREDICTIONS, NAMES, failed=[[TAG + "2", "unreadable"]])
    exact = [float(truth) for truth in TRUTHS]
    second = write_results(root / "other", TRUTHS, [*exact[:-1], 8.0], NAMES)
    third = write_results(root / "third", TRUTHS, [value + 3 for value in exact], NAMES)
    write_results(root / "video", [None] * 3, [5.0, 7.0, 6.0])
    write_results(root / "none", [], [], failed=[["a.jpg", "unreadable"]])
    many = list(range(1, 201))
    write_results(root / "many", many, [value + 0.01 * value for value in many])
    write_results(root / "near", [62, 77, 70, 70], [62.6, 58.9, 64.7, 51.9])
    for name in ("vgg", "video", "many", "none", "near"):
        write_report([root / name], root / f"{name}.html")
    write_report([first, second], root / "two.html")
    write_report([first, second, third], root / "three.html")
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
    wait(browser, "return document.querySelectorAll('.plot .points path').length > 0")
    return browser


def wait(browser, script, *arguments):
    return WebDriverWait(browser, 20).until(lambda _: browser.execute_script(script, *arguments))


def find(browser, selector):
    return browser.find_element("css selector", selector)


def text(browser, selector):
    return find(browser, selector).text


def names(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#list td.name')].map(cell => cell.textContent)"
    )


def pixels(browser, canvas):
    """The sums of the canvas's four channels."""
    return browser.execute_script(
        "const c = document.getElementById(arguments[0]), sums = [0, 0, 0, 0];"
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.forEach((v, i) => { sums[i % 4] += v; });"
        "return sums",
        canvas,
    )


def open_first(browser):
    find(browser, "#list tbody button").click()
    wait(browser, "return document.getElementById('photo').naturalWidth > 0")
    wait(browser, "return document.getElementById('head-number').textContent !== ''")
    wait(browser, "return document.getElementById('opacity-value').textContent !== ''")


@pytest.mark.parametrize("page", ["near", "vgg", "many"])
def test_every_axis_has_numbers(browser, pages, page):
    show(browser, pages / f"{page}.html")
    for axis in ("xaxislayer-above", "yaxislayer-above"):
        script = f"return [...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.{axis} text').length)"
        labels = wait(browser, f"const found = (() => {{ {script} }})(); return found.every(n => n > 1) && found")
        assert len(labels) == 2 and max(labels) < 12


def test_the_totals_are_those_of_the_summary(browser, pages):
    show(browser, pages / "vgg.html")
    summary = json.loads((pages / "vgg" / "summary.json").read_text())
    shown = {
        node.get_attribute("data-total"): node.text for node in browser.find_elements("css selector", "[data-total]")
    }
    assert (int(shown["images"]), int(shown["scored"]), int(shown["failed"])) == (13, 12, 1)
    for name, digits in (("mae", 2), ("mse", 1), ("nae", 3)):
        assert shown[name] == f"{summary[name]['value']:.{digits}f}"
        note = browser.execute_script(f"return document.querySelector('[data-total={name}]').nextSibling.textContent")
        assert f"{summary[name]['low']:.{digits}f} to " in note
    assert text(browser, "#failures li") == f"{TAG}2 unreadable"


def test_names_are_text(browser, pages):
    show(browser, pages / "vgg.html")
    assert set(names(browser)) == set(NAMES)
    assert browser.execute_script("return document.querySelectorAll('img[src=x], script').length") == 4 + len(NAMES) - 1
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0


def test_the_list_sorts_by_every_column(browser, pages):
    show(browser, pages / "vgg.html")
    assert names(browser) == WORST_FIRST
    header = find(browser, "th[data-order=error]")
    assert header.get_attribute("aria-sort") == "descending"
    header.find_element("css selector", "button").click()
    assert names(browser)[0] in (NAMES[11], NAMES[7]) and names(browser)[-1] == WORST_FIRST[0]
    assert header.get_attribute("aria-sort") == "ascending"
    find(browser, "th[data-order=truth] button").send_keys(Keys.ENTER)
    assert names(browser)[:2] == [NAMES[1], NAMES[10]]
    find(browser, "th[data-order=relative] button").click()
    assert names(browser)[0] == NAMES[1] and names(browser)[-1] == NAMES[11], "no relative error: last"
    find(browser, "#order option[value='name:up']").click()
    assert [name for name in names(browser) if name.startswith("IMG")] == NAMES[:10]


def test_search_and_filters(browser, pages):
    show(browser, pages / "vgg.html")
    find(browser, "#search").send_keys("img_000")
    assert len(names(browser)) == 9 and text(browser, "#shown") == "9 of 12 images"
    find(browser, "[data-filter=under]").click()
    assert names(browser) == [NAMES[1], NAMES[3], NAMES[6]]
    find(browser, "#search").send_keys(Keys.CONTROL, "a", Keys.BACKSPACE)
    assert len(names(browser)) == 4
    find(browser, "[data-filter=worst]").click()
    assert names(browser) == WORST_FIRST[:2]
    assert find(browser, "[data-filter=worst]").get_attribute("aria-pressed") == "true"
    find(browser, "#search").send_keys("nothing like this")
    assert names(browser) == [] and find(browser, "#nothing").is_displayed()


def test_the_slider_paints_the_density(browser, pages):
    show(browser, pages / "vgg.html")
    open_first(browser)
    slider = find(browser, "#opacity")
    before = pixels(browser, "density")
    slider.send_keys(Keys.END)
    opaque = pixels(browser, "density")
    assert text(browser, "#opacity-value").startswith("100") and opaque != before
    assert opaque[3] == 255 * 6 * 8, "at the end nothing of the photograph is left"
    slider.send_keys(Keys.HOME)
    assert pixels(browser, "density") == [0, 0, 0, 0]
    slider.send_keys(Keys.ARROW_RIGHT)
    assert text(browser, "#viewer-title") == WORST_FIRST[0], "on the slider the arrows move it"
    slider.send_keys(Keys.END, "d")
    assert pixels(browser, "density")[3] == 0
    slider.send_keys("d")
    assert pixels(browser, "density") == opaque


def test_points_and_heads_can_be_shown_and_hidden(browser, pages):
    show(browser, pages / "vgg.html")
    open_first(browser)
    truth = pixels(browser, "marks")
    assert truth[3] > 0 and text(browser, "#truth-number") == "200" and text(browser, "#head-number") == "1"
    find(browser, "#truth-marks").click()
    assert pixels(browser, "marks") == [0, 0, 0, 0]
    find(browser, "#viewer").send_keys("h")
    assert 0 < pixels(browser, "marks")[3] < truth[3] and find(browser, "#head-marks").is_selected()


def test_the_viewer_walks_through_the_list_as_it_is_shown(browser, pages):
    show(browser, pages / "vgg.html")
    find(browser, "[data-filter=over]").click()
    listed = names(browser)
    open_first(browser)
    assert text(browser, "#viewer-title") == listed[0] and text(browser, "#viewer-position") == f"1 / {len(listed)}"
    find(browser, "#next").click()
    assert text(browser, "#viewer-title") == listed[1]
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert text(browser, "#viewer-title") == listed[2]
    ActionChains(browser).send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT).perform()
    assert text(browser, "#viewer-title") == listed[0] and not find(browser, "#previous").is_enabled()
    ActionChains(browser).send_keys(Keys.ESCAPE).perform()
    assert not find(browser, "#viewer").is_displayed()


def test_a_point_of_a_plot_shows_and_opens_its_image(browser, pages):
    show(browser, pages / "vgg.html")
    x, y, name = browser.execute_script(
        "const node = document.querySelector('.plot'), at = node.data[1].customdata.indexOf(0),"
        "path = node.querySelectorAll('.scatterlayer .trace')[1].querySelectorAll('.points path')[at];"
        "const box = path.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2, 'IMG_0001.jpg']"
    )
    mouse = ActionChains(browser)
    mouse.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    mouse.perform()
    wait(browser, "return !document.getElementById('tip').hidden")
    assert text(browser, "#tip b") == name and text(browser, "#tip span") == "truth 10, predicted 11.0"
    ActionChains(browser).click().perform()
    wait(browser, "return document.getElementById('viewer').open")
    assert text(browser, "#viewer-title") == name and text(browser, "#facts dd") == "11.0"


def test_two_results_are_compared(browser, pages):
    show(browser, pages / "two.html")
    summaries = [json.loads((pages / name / "summary.json").read_text()) for name in ("vgg", "other")]
    for i, summary in enumerate(summaries):
        value = summary["mae"]["value"]
        assert text(browser, f"[data-total=mae-{i}]") == f"{value:.2f}"
    difference = summaries[1]["mae"]["value"] - summaries[0]["mae"]["value"]
    assert text(browser, "[data-paired=mae-1]") == f"\N{MINUS SIGN}{-difference:.2f}"
    assert names(browser)[0] == NAMES[11], "the first result is ahead there"
    assert "8.0" in text(browser, "#list tbody tr") and len(browser.find_elements("css selector", ".plot")) == 3
    find(browser, "[data-filter=other]").click()
    assert names(browser)[-1] == NAMES[1] and NAMES[11] not in names(browser)
    find(browser, "[data-filter=all]").click()
    open_first(browser)
    assert text(browser, "#facts dd") == "0.0"
    before = pixels(browser, "density")
    find(browser, "#switch button:nth-child(2)").click()
    wait(browser, "return document.querySelector('#facts dd').textContent === '8.0'")
    WebDriverWait(browser, 20).until(lambda _: pixels(browser, "density") != before)
    ActionChains(browser).send_keys("1").perform()
    assert text(browser, "#facts dd") == "0.0"


def test_of_three_results_one_is_chosen_to_compare_with(browser, pages):
    show(browser, pages / "three.html")
    assert names(browser)[0] == NAMES[11]
    find(browser, ".panel-head select option[value='2']").click()
    assert text(browser, "[data-filter=other]") == "third nearer"
    changes = browser.execute_script(
        "return [...document.querySelectorAll('#list td.change')].map(cell => cell.textContent)"
    )
    assert changes[0] == "+3.0" and changes[-1] == "\N{MINUS SIGN}47.0"


def test_images_without_truth(browser, pages):
    show(browser, pages / "video.html")
    assert names(browser) == ["IMG_0002.jpg", "IMG_0003.jpg", "IMG_0001.jpg"]
    assert not browser.find_elements("css selector", "[data-total=mae], #list td.error")
    open_first(browser)
    assert text(browser, "#truth-number") == "\N{EN DASH}" and text(browser, "#facts dd") == "7.0"


def test_a_result_without_a_single_image(browser, pages):
    browser.get((pages / "none.html").as_uri())
    assert text(browser, "#failures-title") == "1 image failed" and find(browser, "#nothing").is_displayed()


def test_rows_and_thumbnails_are_made_when_they_come_near(browser, pages):
    show(browser, pages / "many.html")
    first = browser.execute_script("return document.querySelectorAll('#list tbody tr').length")
    assert first < 200 and browser.execute_script("return document.querySelectorAll('#list img[src]').length") < first
    wait(
        browser,
        "scrollTo(0, document.body.scrollHeight); return document.querySelectorAll('#list tbody tr').length === 200",
    )
    wait(browser, "return document.querySelector('#list tbody tr:last-child img').naturalWidth === 64")
    assert names(browser)[-1] == "IMG_0001.jpg"


def test_light_and_dark(browser, pages):
    colors = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        show(browser, pages / "vgg.html")
        colors.append(find(browser, "body").value_of_css_property("background-color"))
    find(browser, "#theme").click()
    assert colors[0] != colors[1] == "rgba(18, 20, 22, 1)"
    assert find(browser, "body").value_of_css_property("background-color") == colors[0]
    browser.execute_script("localStorage.clear()")


@pytest.mark.parametrize("page", ["vgg", "two", "three", "video"])
def test_nothing_is_wider_than_a_phone(browser, pages, page):
    size = {"width": 375, "height": 812, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    show(browser, pages / f"{page}.html")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 375
    open_first(browser)
    box = browser.execute_script(
        "const box = document.getElementById('close').getBoundingClientRect(); return [box.left, box.right]"
    )
    assert 0 < box[0] < box[1] <= 375
