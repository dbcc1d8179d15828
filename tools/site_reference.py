"""The pages of the reference, written from the package itself; docs/conf.py has this module among its extensions.

Every name that a public module has in ``__all__`` is on the page of that module, without anybody having to remember it.
A name that several modules have is documented in the first of them and linked from the others.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import wals_gpu

#: What stands behind the public names; nobody is expected to import from there.
INTERNAL = {"__main__", "backends", "checks", "cli", "compat", "data", "model", "training"}

#: The order of the reference; what else is public follows by name.
FIRST = ("wals_gpu", "wals_gpu.evaluation", "wals_gpu.tuning", "wals_gpu.datasets", "wals_gpu.text")

#: Modules below a package whose documented imports are their own.
BELOW = ("wals_gpu.compat.lenskit", "wals_gpu.compat.rectools", "wals_gpu.text.finetune")

#: A class with more methods has a page of its own.
LARGE = 20


def public_modules() -> list[str]:
    """The face, and every package and door at the top that is not internal."""
    at_the_top = [f"wals_gpu.{found.name}" for found in pkgutil.iter_modules(wals_gpu.__path__)]
    inner = [name for name in at_the_top if name.split(".")[1] not in INTERNAL and "._" not in name]
    return list(dict.fromkeys([*FIRST, *sorted([*inner, *BELOW])]))


def public_names() -> dict[str, dict[str, Any]]:
    """What each public module has in ``__all__``; what needs a package that is not installed is left out."""
    modules = {}
    for name in public_modules():
        try:
            modules[name] = importlib.import_module(name)
        except ImportError as error:
            if (error.name or "").startswith("wals_gpu"):
                raise
    return {name: {each: getattr(module, each) for each in module.__all__} for name, module in modules.items()}


def homes(names: dict[str, dict[str, Any]]) -> dict[int, str]:
    """The name that each object is documented by, over the identities of objects."""
    found: dict[int, str] = {}
    for module, values in names.items():
        for name, value in values.items():
            found.setdefault(id(value), f"{module}.{name}")
    return found


def members(cls: type) -> list[str]:
    """Public methods and properties of a class, then of its bases within the package, in the order of the sources."""
    found: dict[str, None] = {}
    for each in cls.__mro__:
        if each.__module__.split(".")[0] == "wals_gpu":
            for name, value in vars(each).items():
                is_member = isinstance(value, (property, staticmethod, classmethod)) or inspect.isfunction(value)
                if is_member and not name.startswith("_"):
                    found[name] = None
    return [name for name in found if inspect.getdoc(getattr(cls, name))]


def pages() -> dict[str, str]:
    """Text of each page in reStructuredText, by the name of its document in docs/reference."""
    names = public_names()
    home = homes(names)
    made = {}
    for module, values in names.items():
        here = [name for name, value in values.items() if home[id(value)] == f"{module}.{name}"]
        elsewhere = {name: home[id(value)] for name, value in values.items() if name not in here}
        large = [name for name in here if inspect.isclass(values[name]) and len(members(values[name])) > LARGE]
        lines = [*title(module), f".. automodule:: {module}", "", f".. currentmodule:: {module}", ""]
        if here:
            lines += [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in here), ""]
        if elsewhere:
            lines += ["Documented elsewhere:", "", *(f"- :obj:`{name} <{at}>`" for name, at in elsewhere.items()), ""]
        for name in here:
            entry = documented(module, name, values[name])
            if name in large:
                made[f"{module}.{name}"] = "\n".join([*title(f"{module}.{name}"), *entry])
            else:
                lines += entry
        if large:
            lines += [".. toctree::", "   :hidden:", "", *(f"   {module}.{name}" for name in large)]
        made[module] = "\n".join(lines) + "\n"
    lines = [*title("Python"), "Every public name, from the docstrings. Shape letters are the same everywhere:"]
    lines += ["U users, I items, D factors, K results, B queries.", "", ".. list-table::", "   :widths: 30 70", ""]
    for module in names:
        summary = (inspect.getdoc(importlib.import_module(module)) or "").split("\n")[0]
        lines += [f"   * - :doc:`{module}`", f"     - {summary}"]
    lines += ["", ".. toctree::", "   :hidden:", "", *(f"   {module}" for module in names)]
    made["index"] = "\n".join(lines) + "\n"
    return made


def title(text: str) -> list[str]:
    return [text, "=" * len(text), ""]


def documented(module: str, name: str, value: Any) -> list[str]:
    """The lines that document a name."""
    if not inspect.isclass(value):
        return [f".. {'autofunction' if callable(value) else 'autodata'}:: {module}.{name}", ""]
    lines = [f".. autoclass:: {module}.{name}"]
    if its := members(value):
        lines += [f"   :members: {', '.join(its)}", "   :member-order: bysource", "", "   .. rubric:: Methods", ""]
        lines += ["   .. autosummary::", "      :nosignatures:", "", *(f"      {name}.{each}" for each in its)]
    return [*lines, ""]


def write_pages(app: Any) -> None:
    """Before sources are read. Files that would not change are left alone, so that a second build is quick."""
    folder = Path(app.srcdir) / "docs" / "reference"
    folder.mkdir(exist_ok=True)
    made = {f"{name}.rst": text for name, text in pages().items()}
    for file in folder.glob("*.rst"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


@functools.cache
def short_title(page: Path) -> str:
    """The heading of a page, up to its colon."""
    return page.read_text(encoding="utf-8").removeprefix("# ").split("\n")[0].split(":")[0]


def link_pages(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings name pages as ``docs/solvers.md``; on the site that is a link with the page's title."""

    def link(found: re.Match[str]) -> str:
        page = Path(app.srcdir, found[0])
        return f':doc:`"{short_title(page)}" </docs/{page.stem}>`' if page.exists() else found[0]

    lines[:] = [re.sub(r"\bdocs/[a-z-]+\.md\b", link, line) for line in lines]
    # "ndcg@20" is no address to write to
    lines[:] = [re.sub(r'"([a-z_]+)@(\d+)"', r'"\1\\@\2"', line) if ">>>" not in line else line for line in lines]


def title_links(app: Any, document: str, content: list[str]) -> None:
    """Pages link each other by file name, which is right in a checkout; on the site, titles are."""
    folder = Path(app.srcdir, document).parent

    def link(found: re.Match[str]) -> str:
        page = folder / found[1]
        return f'["{short_title(page)}"]({found[2]})' if page.exists() else found[0]

    content[0] = re.sub(r"\[((?:\w+/)?[a-z-]+\.md)\]\((\1(?:#[\w-]+)?)\)", link, content[0])


def forward(app: Any, exception: Exception | None) -> None:
    """The site's root leads to its home."""
    if exception is None and app.builder.name == "html":
        home = f"{app.config.root_doc}.html"
        page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={home}">'
        Path(app.outdir, "index.html").write_text(
            f'{page}<title>wals_gpu</title><a href="{home}">wals_gpu</a>\n', "utf-8"
        )


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """What Sphinx did not find: names that docstrings shorten, or say from within the package.

    A name that ends one documented name is that one. What exists in the package and is not public stays plain text;
    anything else is a mistake that Sphinx warns of.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip(".")
    objects = env.get_domain("py").objects
    found = {name for name in objects if name == target or name.endswith(f".{target}")}
    home = homes(public_names())
    if not found and (value := lookup(target)) is not None and id(value) in home:
        found = {home[id(value)]}
    if len(found) > 1:  # the class itself rather than a method of that name, and the shortest way to it
        found = {min(found, key=lambda name: (name.count("."), len(name)))}
    if found:
        name = found.pop()
        entry = objects[name]
        return make_link(app, node, entry.docname, entry.node_id, contnode, name)
    return contnode if exists(target) else None


def make_link(app: Any, node: Any, document: str, anchor: str, contnode: Any, name: str) -> Any:
    from sphinx.util.nodes import make_refnode

    return make_refnode(app.builder, node["refdoc"], document, anchor, contnode, name)


def lookup(target: str) -> Any:
    """The object of a full name such as wals_gpu.model.wals.WALS.fit, or None."""
    try:
        return pkgutil.resolve_name(target)
    except (ValueError, ImportError, AttributeError):
        return None


def exists(target: str) -> bool:
    """Whether a name, full or shortened, is one of the package's modules or of what they define."""
    if lookup(target) is not None:
        return True
    for found in pkgutil.walk_packages(wals_gpu.__path__, "wals_gpu."):
        if found.name.endswith(f".{target}"):
            return True
        if found.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(found.name)
        except ImportError:  # of a package that is not installed
            continue
        owner, _, rest = target.partition(".")
        if f"{module.__name__}.".endswith(f".{owner}.") and lookup(f"{module.__name__}.{rest}") is not None:
            return True
        if getattr(getattr(module, owner, None), "__module__", None) == module.__name__:
            return lookup(f"{module.__name__}.{target}") is not None
    return False


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", link_pages, priority=100)  # before numpydoc takes it apart
    app.connect("source-read", title_links)
    app.connect("missing-reference", resolve)
    app.connect("build-finished", forward)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
