"""The explorer: one page without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

__all__ = ["explorer_page"]


def explorer_page() -> tuple[bytes, str]:
    """The page, and the policy that a browser is to hold it to: only its own script and style run."""
    page = (resources.files("wals_gpu.serve") / "explorer.html").read_text(encoding="utf-8")
    hashes = {
        tag: " ".join(_source(content) for content in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy


def _source(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
