"""The page in a browser without a window: upload, slider, click, downloads, keys, errors in words, no other host."""

import pytest

from tests.conftest import ROOT
from tests.runtime.page.browser import chromium, click, opened, saved, slide, upload
from tests.runtime.serve.conftest import decoded

pytestmark = pytest.mark.slow
SCENE = ROOT / "tools" / "pictures" / "scene.png"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser, tiny):
    with opened(browser, tiny.address) as found:
        yield found


def test_upload_slider_click_and_downloads(page, tiny):
    upload(page, SCENE)
    counts = []
    for value in (20, 180):
        threshold = slide(page, value)
        counts.append(int(page.get_attribute("#view", "data-count")))
    assert counts[0] > counts[1]
    assert sum("/pictures" in url for url in page.asked) == 4  # sent once, and segmented three times
    assert "pixels" in click(page, 0.5, 0.5)
    assert page.get_attribute("#outline path", "d").startswith("M")
    assert page.eval_on_selector("#heat", "heat => heat.width") == 128
    wanted = tiny.segmenter.attend(decoded(SCENE.read_bytes())).labels(float(threshold))
    files = dict(saved(page, form) for form in ("labels", "overlay", "coco"))
    assert set(files) == {"scene_labels.png", "scene_overlay.png", "scene_coco.json"}
    assert (decoded(files["scene_labels.png"]) == wanted).all()


def test_keys_choose_a_segment(page):
    upload(page, SCENE)
    page.focus("#layers")
    for key in ("ArrowLeft", "Shift+ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("#chosen[data-index]")
    page.keyboard.press("Escape")
    assert page.get_attribute("#outline path", "d") is None


def test_the_sample_and_a_picture_that_was_pasted(page):
    page.click("#sample")
    page.wait_for_selector("#view[data-count]")
    page.eval_on_selector("#view", "view => delete view.dataset.count")
    page.evaluate(
        """async () => {
            const data = new DataTransfer();
            data.items.add(new File([await (await fetch('/page/sample.jpg')).blob()], 'p.jpg', { type: 'image/jpeg' }));
            document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));
        }"""
    )
    page.wait_for_selector("#view[data-count]")


def test_an_error_is_shown_in_words(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(SCENE.read_bytes()[:5000])
    page.set_input_files("#file", str(tmp_path / "broken.png"))
    page.wait_for_selector("#error:not([hidden])")
    assert "cut short" in page.inner_text("#error")
    upload(page, SCENE)
    assert page.is_hidden("#error")


def test_a_picture_that_the_service_has_forgotten_is_sent_again(page, tiny):
    upload(page, SCENE)
    name = next(url for url in page.asked if "/pictures/" in url).split("/pictures/")[1].split("?")[0]
    assert tiny.ask("DELETE", f"/pictures/{name}")[0] == 204
    slide(page, 150)
    assert page.is_hidden("#error")


def test_the_page_fits_a_telephone(browser, tiny):
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.goto(tiny.address)
    assert page.is_visible("#camera-label") and page.get_attribute("#camera", "capture") == "environment"
    upload(page, SCENE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_the_documentation_lists_the_routes(page, tiny):
    page.goto(f"{tiny.address}/docs")
    page.wait_for_selector("details")
    assert "/v2/models/{model}/infer" in page.inner_text("#api")


def test_what_is_cut_has_no_threshold(browser, tiny):
    with opened(browser, tiny.address) as page:
        assert page.is_enabled("#threshold")
        page.route("**/engine", lambda route: route.fulfill(json={**route.fetch().json(), "head": "features"}))
        page.reload()
        page.wait_for_selector("#engine:not(:empty)")
        assert page.is_disabled("#threshold")
