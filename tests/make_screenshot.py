"""Makes docs/images/report.png, the HTML report of the run file in docs: python tests/make_screenshot.py."""

import tempfile
from pathlib import Path

from browsers import chromium
from hand_made import decodetax

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "docs" / "runs" / "cpu-epyc-2-cores.json"
PICTURE = ROOT / "docs" / "images" / "report.png"
SIZE = {"width": 1100, "height": 1680}
MAX_BYTES = 300_000


def main():
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        report = Path(folder) / "report.html"
        outcome = decodetax("report", RUN, "--html", report)
        if outcome.code != 0:
            raise SystemExit(outcome.err)
        page = browser.new_page(viewport=SIZE)
        page.goto(report.as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        picture = page.screenshot()
    if len(picture) > MAX_BYTES:
        raise SystemExit(f"{len(picture)} bytes, which is more than {MAX_BYTES}")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture)


if __name__ == "__main__":
    main()
