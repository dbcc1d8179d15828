"""The site of the documentation: it builds without a warning, its links lead somewhere, every public name is in it."""

import ast
import inspect
import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import beside
import pytest

for name in ("sphinx", "myst_nb", "pydata_sphinx_theme", "sphinx_copybutton"):
    pytest.importorskip(name)
docscrape = pytest.importorskip("numpydoc.docscrape")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import site_reference  # noqa: E402

NAMES = site_reference.public_names()
HOMES = site_reference.homes(NAMES)
pytestmark = pytest.mark.waits_for("site")


class Page(HTMLParser):
    """Anchors of a page, what it links, and what a browser loads with it."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" or found.get("src"):
            self.loaded.append(found.get("src") or found.get("href") or "")


@cache
def built():
    done = beside.result("site")
    assert done["status"] == 0, done["stderr"] or done["stdout"]
    return Path(done["folder"])


@cache
def pages():
    found = {path: Page(path) for path in sorted(built().rglob("*.html")) if "_static" not in path.parts}
    assert len(found) > 60
    return found


def documented():
    """Every public function and class with its name, and every member of the classes, once."""
    for module, values in NAMES.items():
        for name, value in values.items():
            if HOMES[id(value)] == f"{module}.{name}":
                yield f"{module}.{name}", value
                if inspect.isclass(value):
                    yield from (
                        (f"{module}.{name}.{each}", getattr(value, each)) for each in site_reference.members(value)
                    )


def test_it_builds_without_a_warning():
    done = beside.result("site")
    assert (done["status"], done["stderr"]) == (0, "")


def lost_links(pages):
    """Each link within the site that leads to no file, or to no anchor of a page."""
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{path.name}: {link} is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.name}: {link} is no anchor"


def test_every_link_and_anchor_leads_somewhere():
    assert list(lost_links(pages())) == []
    assert not [link for page in pages().values() for link in page.links if link.startswith("mailto:")]  # "ndcg@20"


def test_lost_links_are_found(tmp_path):
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    one.write_text(
        '<a href="two.html#here">ok</a> <a href="two.html#gone">x</a> <a href="three.html">x</a> <img src="no.png">'
    )
    two.write_text('<h1 id="here">Two</h1> <a href="#gone">x</a> <a href="https://example.com/#any">ok</a>')
    lost = list(lost_links({path: Page(path) for path in (one, two)}))
    wanted = ["two.html#gone is no anchor", "three.html is not there", "no.png is not there"]
    assert lost == [*(f"one.html: {each}" for each in wanted), "two.html: #gone is no anchor"]


def test_pages_load_nothing_from_elsewhere():
    found = [f"{path.name}: {each}" for path, page in pages().items() for each in page.loaded if "//" in each]
    for style in built().rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        found += [
            f"{style.name}: {each}" for each in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", text)
        ]
    assert not found


def test_every_public_name_is_in_the_reference():
    anchors = set().union(*(page.ids for page in pages().values()))
    assert {"wals_gpu.WALS.fit", "wals_gpu.evaluation.evaluate", "wals_gpu.PRESETS"} <= anchors
    assert [name for name, _ in documented() if name not in anchors] == []
    assert (built() / "docs" / "reference" / "wals_gpu.WALS.html").exists()


def test_what_documentation_imports_is_in_the_reference():
    missing = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wals_gpu":
                    known = NAMES.get(node.module, {})
                    wanted = [each.name for each in node.names if f"{node.module}.{each.name}" not in NAMES]
                    missing += [f"{page.name}: {node.module}.{each}" for each in wanted if each not in known]
    assert not missing


def names_in(docstring, *sections):
    """What sections of a docstring list, without the asterisks of arguments."""
    entries = (entry.name for section in sections for entry in docstring[section])
    return [each.lstrip("*") for entry in entries for each in entry.split(", ")]


def made_by_us(cls):
    """Whether what a class takes is said in the package: not of errors, protocols, and classes of other packages."""
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "wals_gpu"]
    return any(
        ("__init__" in vars(base) or hasattr(base, "_fields")) and not getattr(base, "_is_protocol", False)
        for base in own
    )


def not_as_numpydoc_wants_it(name, value):
    """What is wrong with the docstring of a function, method or class."""
    text = inspect.getdoc(value)
    if not text:
        yield f"{name} has no docstring"
        return
    found = docscrape.NumpyDocString(text)
    listed = names_in(found, "Parameters", "Other Parameters")
    known = names_in(found, "Attributes")
    if inspect.isclass(value):  # its attributes are what it takes, if it is a dataclass
        bases = [inspect.getdoc(base) for base in value.__mro__[1:] if base.__module__.split(".")[0] == "wals_gpu"]
        known += [each for base in bases if base for each in names_in(docscrape.NumpyDocString(base), "Attributes")]
        if not listed and not made_by_us(value):
            return
    signature = inspect.signature(value)
    taken = set(signature.parameters) - {"self", "cls"}
    yield from (f"{name}: {each} is not described" for each in sorted(taken - set(listed) - set(known)))
    yield from (f"{name}: takes no {each}" for each in listed if each not in taken)
    gives = signature.return_annotation not in (None, "None", "Iterator[None]")
    if taken and gives and not inspect.isclass(value) and not (found["Returns"] or found["Yields"]):
        yield f"{name} does not say what it returns"


def test_docstrings_of_public_names_are_in_numpy_style():
    """Sections that numpydoc reads: all that is taken, and no more, and what is returned. Data say it beside them."""
    assert [
        bad for name, value in documented() if callable(value) for bad in not_as_numpydoc_wants_it(name, value)
    ] == []


def test_docstrings_that_lack_something_are_found():
    def scaled(vectors, *, by: float = 1.0) -> list:
        """Scaled vectors.

        Parameters
        ----------
        vectors : list
        factor : float
        """

    wrong = ["by is not described", "takes no factor"]
    expected = [f"scaled: {each}" for each in wrong] + ["scaled does not say what it returns"]
    assert list(not_as_numpydoc_wants_it("scaled", scaled)) == expected
    scaled.__doc__ = "Scaled vectors."
    assert "scaled: vectors is not described" in not_as_numpydoc_wants_it("scaled", scaled)


def test_names_that_are_nowhere_are_not_taken_for_internal_ones():
    """Internal names stay plain text in the reference; what is nowhere in the package is a warning of Sphinx."""
    assert site_reference.exists("wals_gpu.retrieval.posterior") and site_reference.exists("session.Session.solve")
    assert not site_reference.exists("wals_gpu.retrieval.posteriors") and not site_reference.exists(
        "session.Session.solves"
    )


def test_search_finds_a_page():
    """The index is a file of the site, and knows names and words."""
    index = (built() / "searchindex.js").read_text(encoding="utf-8")
    assert "docs/evaluation" in index and "random_holdout" in index and "popular" in index
