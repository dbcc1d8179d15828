"""The page in a browser: both themes, on paper, without a request or a word of complaint."""

from __future__ import annotations

import json
import re
import subprocess
from urllib.parse import urlsplit

import numpy as np
import pytest
from programs import program
from scipy.sparse import csr_matrix

from wals_gpu import WALS
from wals_gpu.evaluation import evaluate, random_holdout
from wals_gpu.report import write_report
from wals_gpu.report.style import PALETTES

#: Whom the browser itself would ask about its time, its updates and its user.
OWN_HOSTS = ("google.com", "googleapis.com", "gvt1.com")


def browse(path, folder, theme="light"):
    """The page as it is in the end, what the console says, what is asked for over a network, picture and PDF."""
    folder.mkdir()
    log = folder / "net.json"
    done = subprocess.run(
        [
            program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr", f"--log-net-log={log}", "--window-size=900,700",
            f"--blink-settings=preferredColorScheme={int(theme == 'light')}", f"--screenshot={folder / 'page.png'}",
            f"--print-to-pdf={folder / 'page.pdf'}", "--dump-dom", path.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    text = log.read_text()
    try:
        events = json.loads(text)["events"]
    except json.JSONDecodeError:  # it ends where the browser did
        events = json.loads(text.rstrip().rstrip(",") + "]}")["events"]
    urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    others = {url for url in urls if not (urlsplit(url).hostname or "").endswith(OWN_HOSTS)}
    asked = {url for url in others if urlsplit(url).scheme not in ("file", "data", "chrome", "about", "devtools")}
    return done.stdout, said, asked, folder / "page.png", folder / "page.pdf"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    same = np.arange(60)[:, None] % 3 == np.arange(24) % 3
    likes = csr_matrix((rng.random((60, 24)) < np.where(same, 0.8, 0.1)).astype("float32"))
    train, test = random_holdout(likes, 0.3, per_user=True)
    model = WALS(3, num_threads=1).fit(train)
    report = evaluate(model, train, test, 5, few_shot=4)
    path = tmp_path_factory.mktemp("page") / "report.html"
    titles = ["<script>document.title = 'changed'</script>"] * 24
    return write_report(path, report, model=model, train=train, test=test, titles=titles)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(page, tmp_path, theme):
    image = pytest.importorskip("matplotlib.image")
    dom, said, asked, picture, paper = browse(page, tmp_path / "b", theme)
    assert (said, asked) == ([], set())
    for slug in ("metrics", "differences", "cohorts", "popularity", "calibration", "examples", "training", "data"):
        assert f'<section id="{slug}"' in dom
    assert "<title>wals ranks" in dom and "&lt;script&gt;document.title" in dom
    pixels = (image.imread(picture)[..., :3] * 255).round().astype(int)
    ground = tuple(int(PALETTES[theme]["page"][i : i + 2], 16) for i in (1, 3, 5))
    assert tuple(pixels[3, 3]) == ground and (pixels == pixels[3, 3]).all(axis=-1).mean() < 0.999
    assert paper.read_bytes().startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) >= 2


def test_a_page_that_does_ask_is_noticed(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<title>x</title><img src='http://planted.invalid/x.png'><script>console.error('planted')</script>")
    _, said, asked, *_ = browse(path, tmp_path / "b")
    assert asked == {"http://planted.invalid/x.png"} and any("planted" in line for line in said)
