"""What self-contained HTML pages share: the style, and a policy that lets them fetch nothing."""

import base64
import hashlib
from importlib.resources import files


def page_style() -> str:
    """The style that every page has before its own: colours, light and dark, text, tables, paper."""
    return files(__package__).joinpath("assets", "page.css").read_text(encoding="utf-8")


def content_security_policy(*scripts: str, images: str = "data:") -> str:
    """A policy by which nothing is fetched and only these scripts run.

    Args:
        scripts: the texts of the page's scripts.
        images: where images may come from; "data:" is the empty icon.
    """
    hashes = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts
    )
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src {images}; "
        "base-uri 'none'; form-action 'none'"
    )
