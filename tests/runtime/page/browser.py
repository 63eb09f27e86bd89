"""Chromium without a window, a file server for it, and what people do on the page."""

import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def file_server(folder, **headers):
    """The address of a server of a folder's files, on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def end_headers(self):
            for name, value in {"Cache-Control": "no-store", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            super().end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chromium():
    """Debian's Chromium, driven by playwright; skips where one of them is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, **options):
    """The page in a tab of its own; `asked`: the addresses it asks. Fails if a script fails or asks another host."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, "accept_downloads": True, **options})
    context.set_default_timeout(120_000)  # milliseconds; the machine may be busy
    page = context.new_page()
    page.asked, wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#engine:not(:empty)")
    yield page
    assert not wrong
    assert all(url.startswith((address, "blob:", "data:")) for url in page.asked)
    context.close()


def upload(page, path):
    """Choose a picture, and wait until it is segmented, or until there is an error."""
    page.eval_on_selector("#view", "view => delete view.dataset.count")
    page.eval_on_selector("#error", "place => { place.hidden = true }")
    page.set_input_files("#file", str(path))
    page.wait_for_selector("#view[data-count], #error:not([hidden])", state="attached")


def slide(page, value):
    """Move the slider, and wait for the answer; its threshold."""
    before = page.get_attribute("#view", "data-threshold")
    page.eval_on_selector(
        "#threshold", "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", value
    )
    page.wait_for_selector(f"#view:not([data-threshold='{before}'])", state="attached")
    return page.get_attribute("#view", "data-threshold")


def saved(page, form):
    """The name and the bytes of a download."""
    with page.expect_download() as downloading:
        page.click(f"#downloads button[data-form={form}]")
    return downloading.value.suggested_filename, downloading.value.path().read_bytes()


def click(page, x, y):
    """Click the picture at shares of its width and height, and wait for the answer; what is told."""
    box = page.locator("#layers").bounding_box()
    page.locator("#layers").click(position={"x": box["width"] * x, "y": box["height"] * y})
    page.wait_for_selector("#chosen[data-index]")
    return page.inner_text("#chosen")
