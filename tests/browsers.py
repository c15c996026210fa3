"""A browser without a window, for the HTML report."""

import contextlib
import os
import shutil

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def chromium():
    """The installed Chromium, driven by playwright, which comes without a browser."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  (an extra, which a session may lack)

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium has none for root
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield opened
        opened.close()
