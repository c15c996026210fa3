"""A browser without a window, for the HTML pages, and what each page must keep to."""

import contextlib
import os
import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@contextlib.contextmanager
def chromium():
    """The installed Chromium, driven by playwright, which comes without a browser."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  (an extra, which a session may lack)

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium has none for root
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield opened
        opened.close()


@contextlib.contextmanager
def shown(browser, path, *, scheme="light", viewport=DESK):
    """The page, drawn; it must have fetched nothing, said nothing on the console and opened no dialog."""
    context = browser.new_context(color_scheme=scheme, viewport=viewport)
    page, said, asked = context.new_page(), [], []
    context.route(
        "**/*", lambda route: route.continue_() if route.request.url == path.as_uri() else route.abort()
    )
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached", timeout=20_000)
    try:
        yield page
    finally:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
