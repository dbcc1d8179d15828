"""What has to hold for a model to be published: a few comparisons, read from a text by hand; nothing is evaluated."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wals_gpu.checks import did_you_mean
from wals_gpu.training.validation import METRICS, parse_metric

__all__ = ["NO_CONDITION", "Condition", "Verdict"]

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
OTHERS = ("yesterday", "popularity")
ALWAYS = "always"
#: Why a model is published then.
NO_CONDITION = "no condition had to hold"

_WORD = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w@.])|(?P<name>[A-Za-z_][\w@]*)"
                   r"|(?P<sign>>=|<=|>|<|[+-]))")  # fmt: skip
_LONGEST = 1000


class Word(NamedTuple):
    """A part of the text."""

    text: str
    kind: str  # number, name, sign, end
    at: int  # of the first character, from 1


@dataclass(frozen=True)
class Comparison:
    """``left sign other + plus``, such as ``ndcg@20 >= yesterday - 0.002``."""

    left: str  # a metric with its length, or "users"
    sign: str
    other: str | None  # "yesterday", "popularity"; None: a number alone
    plus: float

    def __str__(self) -> str:
        if self.other is None:
            return f"{self.left} {self.sign} {self.plus:g}"
        change = "" if self.plus == 0 else f" {'-' if self.plus < 0 else '+'} {abs(self.plus):g}"
        return f"{self.left} {self.sign} {self.other}{change}"


class Verdict(NamedTuple):
    """Whether a condition holds, and why in words."""

    holds: bool
    reason: str


@dataclass(frozen=True)
class Condition:
    """Comparisons that must all hold.

    ::

        condition  = "always" | comparison { "and" comparison }
        comparison = metric ("@" length) sign side | "users" sign number
        side       = ( "yesterday" | "popularity" | number ) [ ("+" | "-") number ]
        sign       = ">=" | ">" | "<=" | "<"

    Parameters
    ----------
    text : str
        As it was given.
    comparisons : tuple of Comparison
        None for "always".
    """

    text: str
    comparisons: tuple[Comparison, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Parameters
        ----------
        text : str
            Such as ``"ndcg@20 >= yesterday - 0.002 and ndcg@20 > popularity"``, or ``"always"``.

        Returns
        -------
        Condition

        Raises
        ------
        TypeError, ValueError
            It is none; the message says at which character, what was expected and what is there.
        """
        if not isinstance(text, str):
            raise TypeError(f"a condition must be a text such as 'ndcg@20 >= yesterday - 0.002', got {text!r:.60}")
        if len(text) > _LONGEST:
            raise ValueError(f"a condition must have at most {_LONGEST} characters, got {len(text)}")
        words = _Words(text)
        if words.next.text == ALWAYS:
            words.take()
            words.expect_end()
            return cls(text, ())
        comparisons = [_comparison(words)]
        while words.next.kind != "end":
            if words.next.text != "and":
                raise words.error("'and', or the end", words.next, ("and",))
            words.take()
            comparisons.append(_comparison(words))
        return cls(text, tuple(comparisons))

    @property
    def metrics(self) -> list[str]:
        """The metrics that it is about, each once, in its order."""
        return list(dict.fromkeys(one.left for one in self.comparisons if one.left != "users"))

    @property
    def needs_measuring(self) -> bool:
        """Whether anything has to be measured to decide."""
        return bool(self.comparisons)

    def check(self, values: Mapping[str, Mapping[str, float]], users: int, has_yesterday: bool) -> Verdict:
        """Whether it holds.

        Parameters
        ----------
        values : mapping of metric to mapping of who to value
            Who is "candidate", "popularity" and "yesterday".
        users : int
            Whose lists were measured.
        has_yesterday : bool
            Without a model before, comparisons with it hold: there is nothing to be worse than.

        Returns
        -------
        Verdict
        """
        if not self.comparisons:
            return Verdict(True, NO_CONDITION)
        failed: list[str] = []
        held: list[str] = []
        for one in self.comparisons:
            if one.other == "yesterday" and not has_yesterday:
                held.append(f"{one}: there is no model before")
                continue
            left = float(users) if one.left == "users" else values[one.left]["candidate"]
            right = (0.0 if one.other is None else values[one.left][one.other]) + one.plus
            shown, against = (f"{left:.0f}", f"{right:g}") if one.left == "users" else _apart(left, right)
            ok = OPERATORS[one.sign](left, right)
            (held if ok else failed).append(f"{one}: {shown} {one.sign} {against}" + ("" if ok else " does not hold"))
        return Verdict(not failed, "; ".join(failed or held))


def _apart(left: float, right: float) -> tuple[str, str]:
    """Both with four digits, or with as many as tell them apart."""
    digits = 4
    while left != right and f"{left:.{digits}f}" == f"{right:.{digits}f}" and digits < 17:
        digits += 1
    return f"{left:.{digits}f}", f"{right:.{digits}f}"


class _Words:
    """The words of a text, one after the other."""

    def __init__(self, text: str) -> None:
        self.text, self._at = text, 0
        self.next = self._read()

    def _read(self) -> Word:
        rest = self.text[self._at :]
        if not rest.strip():
            return Word("", "end", len(self.text.rstrip()) + 1)
        found = _WORD.match(self.text, self._at)
        if found is None:
            start = self._at + len(rest) - len(rest.lstrip())
            strange = Word(re.split(r"[\s<>+-]", self.text[start:])[0] or self.text[start], "strange", start + 1)
            raise self.error("a metric, a comparison or a number", strange)
        self._at = found.end()
        kind = found.lastgroup or ""
        return Word(found[kind], kind, found.start(kind) + 1)

    def take(self) -> Word:
        word = self.next
        self.next = self._read()
        return word

    def expect_end(self) -> None:
        if self.next.kind != "end":
            raise self.error("the end", self.next)

    def error(self, wanted: str, word: Word, known: tuple[str, ...] = ()) -> ValueError:
        got = f"got {word.text!r}" if word.text else "the text ends"
        hint = did_you_mean(word.text, known) if word.kind == "name" else ""
        return ValueError(f"at character {word.at} of {self.text!r}: wanted is {wanted}; {got}{hint}")


def _comparison(words: _Words) -> Comparison:
    left = words.take()
    if left.kind != "name" or left.text in (*OTHERS, "and", ALWAYS):
        raise words.error("a metric such as ndcg@20, or users", left)
    is_users = left.text == "users"
    if not is_users:
        try:
            parse_metric(left.text)
        except ValueError:
            name = left.text.partition("@")[0]
            others = f"users, or one of {', '.join(METRICS)} with a list length (ndcg@20)"
            wanted = f"{name} with a list length, such as {name}@20" if name in METRICS else others
            raise words.error(wanted, left) from None
    sign = words.take()
    if sign.text not in OPERATORS:
        raise words.error("one of >=, >, <=, <", sign)
    side = words.take()
    other, value = None, 0.0
    if side.text == "-" and words.next.kind == "number":  # a number below 0
        value = -float(words.take().text)
    elif side.kind == "number":
        value = float(side.text)
    elif side.text in OTHERS and not is_users:
        other = side.text
    else:
        raise words.error("a number" if is_users else "yesterday, popularity or a number", side, OTHERS)
    if words.next.text in ("+", "-"):
        change = words.take()
        amount = words.take()
        if amount.kind != "number":
            raise words.error("a number", amount)
        value += float(amount.text) if change.text == "+" else -float(amount.text)
    comparison = Comparison(left.text, sign.text, other, value)
    # What the left side can be, less what the right side can be without its number.
    least, most = (0.0, math.inf) if is_users else (0.0 if other is None else -1.0, 1.0)
    can_hold = OPERATORS[sign.text](most if sign.text[0] == ">" else least, value)
    if not math.isfinite(value) or not can_hold:
        wanted = "users are 0 or more" if is_users else "metrics are from 0 to 1, with 0.5 for 50 %"
        raise ValueError(f"at character {side.at} of {words.text!r}: {comparison} can never decide anything; {wanted}")
    return comparison
