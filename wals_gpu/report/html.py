"""HTML as a tree: what is text stays text, wherever it comes from, as the tree is what escapes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

__all__ = ["Content", "Element", "brief", "clean", "clipped", "foreign", "h", "table", "write_html"]

Content: TypeAlias = "Element | str | int | float | Iterable[Content] | None"

#: What HTML has no way to write, and halves of characters.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
#: Characters of a title that are shown; a list of a few hundred titles of any length stays a small page.
_LONGEST = 160


def clean(text: str) -> str:
    """A text that can be written as HTML: control characters and halves of characters are U+FFFD."""
    return _UNWRITABLE.sub("\ufffd", text)


def clipped(text: str, longest: int = _LONGEST) -> str:
    """The beginning of a text that is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "\u2026"


def brief(name: str, longest: int = 40) -> str:
    """A name of a model without its middle, where it is longer: paths and settings differ at their ends, too."""
    end = longest // 2
    return name if len(name) <= longest else f"{name[: longest - end - 1]}\u2026{name[-end:]}"


def h(tag: str, *content: Content, **attributes: Any) -> Element:
    """An element.

    Parameters
    ----------
    tag : str
    *content : Element, text, number, None, or any number of these
        None is nothing.
    **attributes
        ``class_`` is class, other ``_`` are ``-``; None leaves the attribute out.

    Examples
    --------
    >>> ElementTree.tostring(h("p", "1 < ", h("b", 2), class_="x"), encoding="unicode", method="html")
    '<p class="x">1 &lt; <b>2</b></p>'
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    element = Element(tag, {names[name]: clean(str(v)) for name, v in attributes.items() if v is not None})
    _append(element, content)
    return element


def _append(element: Element, content: Iterable[Content]) -> None:
    for one in content:
        if one is None:
            continue
        if isinstance(one, Element):
            element.append(one)
        elif isinstance(one, (str, int, float)):
            text = clean(str(one))
            if len(element):
                element[-1].tail = (element[-1].tail or "") + text
            else:
                element.text = (element.text or "") + text
        else:
            _append(element, one)


def foreign(text: object) -> Element:
    """A text that is not ours, such as a title: in its own direction, of no more than some length."""
    return h("bdi", clipped(" ".join(str(text).split())), dir="auto")


def table(caption: str, header: Sequence[Content], rows: Iterable[Sequence[Content]]) -> Element:
    """A table with a caption, whose rows begin with what they are about; where it is wide, it scrolls, by keyboard too.

    Parameters
    ----------
    caption : str
    header : sequence of content
    rows : iterable of sequences of content
        Cells that are numbers, or texts that begin with one, are set right.
    """

    def cell(content: Content, column: int) -> Element:
        kind = "number" if _is_number(content) else None
        return h("th", content, scope="row") if column == 0 else h("td", content, class_=kind)

    lines = [[cell(one, column) for column, one in enumerate(row)] for row in rows]
    head = [
        h("th", one, scope="col", class_="number" if _is_column_of_numbers(lines, c) else None)
        for c, one in enumerate(header)
    ]
    body = h(
        "table",
        h("caption", caption),
        h("thead", h("tr", *head)),
        h("tbody", [h("tr", *line) for line in lines]),
    )
    return h("div", body, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _is_column_of_numbers(lines: Sequence[Sequence[Element]], column: int) -> bool:
    """Whether all cells that hold anything are numbers."""
    filled = [line[column] for line in lines if len(line[column]) or line[column].text]
    return bool(filled) and all(cell.get("class") == "number" for cell in filled)


def _is_number(content: Content) -> bool:
    if isinstance(content, (int, float)):
        return True
    return isinstance(content, str) and bool(re.match(r"^[<>]? ?[-+\u2212]?\d", content))


def write_html(root: Element) -> str:
    """A whole page as text."""
    return "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
