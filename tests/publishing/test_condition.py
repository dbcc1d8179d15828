"""Conditions of publication: what they mean, and where a mistake is."""

import pytest

from wals_gpu.publishing import Condition

VALUES = {
    "ndcg@20": {"candidate": 0.30, "yesterday": 0.301, "popularity": 0.10},
    "recall@5": {"candidate": 0.50, "yesterday": 0.40, "popularity": 0.60},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ndcg@20 >= yesterday - 0.002", True),
        ("ndcg@20 >= yesterday", False),
        ("ndcg@20>=yesterday-.002 and recall@5>yesterday+0.05", True),
        ("ndcg@20 >= yesterday - 0.002 and recall@5 > popularity", False),
        ("ndcg@20 > 0.3", False),
        ("ndcg@20 >= 3e-1", True),
        ("ndcg@20 > 0.2 + 0.05", True),
        ("recall@5 < popularity - 0.05", True),
        ("recall@5 <= 0.2 - 0.1", False),
        ("recall@5 > -0.5", True),
        ("users >= 100", True),
        ("users > 100", False),
        ("always", True),
    ],
)
def test_conditions(text, holds):
    condition = Condition.parse(text)
    verdict = condition.check(VALUES, 100, has_yesterday=True)
    assert verdict.holds == holds
    assert ("does not hold" in verdict.reason) != holds
    assert condition.needs_measuring == (text != "always")


def test_the_reason_names_what_failed():
    verdict = Condition.parse("users >= 10 and ndcg@20 >= yesterday + 0.01").check(VALUES, 100, True)
    assert verdict == (False, "ndcg@20 >= yesterday + 0.01: 0.3000 >= 0.3110 does not hold")


def test_the_reason_has_as_many_digits_as_tell_both_sides_apart():
    values = {"ndcg@20": {"candidate": 0.300001, "yesterday": 0.300004}}
    verdict = Condition.parse("ndcg@20 >= yesterday").check(values, 10, True)
    assert verdict == (False, "ndcg@20 >= yesterday: 0.300001 >= 0.300004 does not hold")
    assert "0.3000 > 0.3000" in Condition.parse("ndcg@20 > 0.3").check(VALUES, 10, True).reason


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("ndcg@20 >= 50", 12, "metrics are from 0 to 1, with 0.5 for 50 %"),
        ("users > 3 and ndcg@20 > 0.5 + 0.5", 25, "metrics are from 0 to 1"),
        ("ndcg@20 < 0", 11, "metrics"),
        ("recall@5 <= -0.5", 13, "metrics"),
        ("recall@5 >= yesterday + 1.5", 13, "metrics"),
        ("recall@5 < popularity - 1", 12, "metrics"),
        ("ndcg@20 >= yesterday - 1e999", 12, "metrics"),
        ("users < 0", 9, "users are 0 or more"),
        ("users >= 1e400", 10, "users"),
    ],
)
def test_what_can_never_be_true_is_refused(text, at, says):
    """A model would never be published again, and nobody would be told why."""
    with pytest.raises(ValueError, match=f"at character {at} of .*can never decide anything; {says}"):
        Condition.parse(text)
    assert Condition.parse("ndcg@20 >= 1 and recall@5 >= yesterday + 1 and users >= 0 and ndcg@20 > -1").comparisons


def test_without_a_model_before_comparisons_with_it_hold_and_others_count():
    values = {name: {"candidate": 0.1, "popularity": 0.2} for name in VALUES}
    assert Condition.parse("ndcg@20 >= yesterday").check(values, 10, has_yesterday=False).holds
    assert not Condition.parse("ndcg@20 >= yesterday and ndcg@20 > popularity").check(values, 10, False).holds


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("", 1, "a metric such as ndcg@20, or users; the text ends"),
        ("ndcg@20 >= yesteday", 12, "yesterday, popularity or a number; got 'yesteday'; did you mean 'yesterday'?"),
        ("ndcg@20 => yesterday", 9, "a metric, a comparison or a number; got '='"),
        ("ndcg >= yesterday", 1, "ndcg with a list length, such as ndcg@20; got 'ndcg'"),
        ("accuracy@3 > 0", 1, "users, or one of recall, "),
        ("ndcg@20 yesterday", 9, "one of >=, >, <=, <; got 'yesterday'"),
        ("ndcg@20 >= yesterday -", 23, "a number; the text ends"),
        ("ndcg@20 >= yesterday or users > 3", 22, "'and', or the end; got 'or'"),
        ("ndcg@20 >= yesterday and", 25, "a metric such as ndcg@20, or users; the text ends"),
        ("users >= yesterday", 10, "a number; got 'yesterday'"),
        ("always and users > 1", 8, "the end; got 'and'"),
        ("ndcg@20 >= 0.1.2", 12, "got '0.1.2'"),
        ("__import__('os').system('x') > 0", 11, """got "('os').system('x')\""""),
    ],
)
def test_a_mistake_is_shown_with_its_place(text, at, says):
    with pytest.raises(ValueError, match=f"at character {at} of ") as error:
        Condition.parse(text)
    assert says in str(error.value)


def test_what_is_no_text_or_endless():
    with pytest.raises(TypeError, match="a condition must be a text such as"):
        Condition.parse(3)
    with pytest.raises(ValueError, match="at most 1000 characters, got 1001"):
        Condition.parse("x" * 1001)
