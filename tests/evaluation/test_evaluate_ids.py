"""evaluate and metrics compare by id, take tables and implicit's models, and say what users without history got."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from scipy.sparse import csr_matrix

from wals_gpu import WALS, DataError, Interactions, ParameterWarning, as_interactions
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.data.csr import entry_rows, select
from wals_gpu.evaluation import (
    Estimate,
    Popularity,
    evaluate,
    random_holdout,
    ranking_metrics,
    sample_negatives,
    strong_generalisation_split,
)


def make_log(seed=0, users=40, items=20, kind=str):
    """A table of likes in random order; ids are far from row numbers."""
    rng = np.random.default_rng(seed)
    same_kind = np.arange(users)[:, None] % 2 == np.arange(items) % 2
    rows, cols = np.nonzero(rng.random((users, items)) < np.where(same_kind, 0.5, 0.1))
    order = rng.permutation(len(rows))
    names = rng.permutation(1000)[:items]  # in another order than their numbers
    user = [kind(f"u{r:02}") if kind is str else kind(500 - 3 * r) for r in rows[order]]
    return pd.DataFrame({"user": user, "item": names[cols[order]]})


def table_of(data):
    coo = data.matrix.tocoo()
    return pd.DataFrame({"user": data.user_ids[coo.row], "item": data.item_ids[coo.col], "value": coo.data})


def apart(data):
    """The same interactions numbered by their own ids only."""
    return as_interactions(table_of(data).sample(frac=1, random_state=1))


def results(report):
    return json.dumps(report.to_dict()["results"])


@pytest.fixture(params=[str, int], ids=["strings", "integers"])
def split(request):
    """A model, and the train and test Interactions that it belongs to; all users are known."""
    train, test = random_holdout(as_interactions(make_log(kind=request.param)), 0.2, per_user=True)
    return WALS(4, iterations=3).fit(train), train, test


def test_what_is_numbered_apart_gives_the_same_numbers(split):
    model, train, test = split
    few = replace(test, matrix=select(test.matrix, (test.matrix.indices % 3 > 0) & (entry_rows(test.matrix) > 5)))
    expected = evaluate(model, train, few, ks=(3, 9))
    assert expected.user_ids.tolist() == train.user_ids[expected.users].tolist()
    other = apart(few)
    assert other.matrix.shape != few.matrix.shape and other.item_ids != few.item_ids
    for this_train in (train, apart(train), train.matrix, table_of(train)):
        for this_test in (few, other, few.matrix, table_of(few)):
            report = evaluate(model, this_train, this_test, ks=(3, 9))
            assert results(report) == results(expected)
            assert report.users.tolist() == expected.users.tolist() and report.dropped == 0
            assert report.user_ids.tolist() == expected.user_ids.tolist()
    # by hand, from ids alone
    liked = few.matrix.tocoo()
    liked = set(zip(few.user_ids[liked.row].tolist(), few.item_ids[liked.col].tolist(), strict=True))
    for user, recall in zip(expected.user_ids.tolist(), expected.per_user["wals"]["plain_recall@3"], strict=True):
        ids, _ = model.recommend(user, 3)
        relevant = [item for u, item in liked if u == user]
        assert recall == pytest.approx(len(set(np.asarray(ids).tolist()) & set(relevant)) / len(relevant))


def test_arguments_that_are_none_are_named(split):
    model, train, test = split
    for wrong in (None, WALS, 5):
        with pytest.raises(TypeError, match=r"model must be a fitted model with recommend\(...\), such as a WALS, got"):
            evaluate(wrong, train, test)
    for ks in ("5", 5.0, [1, 2.5], True, [[1, 2]]):
        with pytest.raises(TypeError, match="ks must be a list length or several, integers"):
            evaluate(model, train, test, ks=ks)
    with pytest.raises(ValueError, match="ks must be list lengths of at least 1"):
        evaluate(model, train, test, ks=[])
    assert repr(evaluate(model, train, test, ks=3)) == str(evaluate(model, train, test, ks=3))
    for relevant in (test, test.matrix):
        with pytest.raises(ValueError, match="ids must be lists of one length"):
            ranking_metrics([[1, 2], [3]], relevant, 1)


def test_what_does_not_match_is_refused(split):
    model, train, test = split
    strange = {"user": [train.user_ids[0]] * 2 + [train.user_ids[1]], "item": [-7, int(test.item_ids[0]), -8]}
    other = as_interactions(pd.DataFrame(strange))
    with pytest.raises(
        DataError, match="test names 2 items that the model does not know, such as item -8, in 2 of its 3"
    ):
        evaluate(model, train, other, ks=3, filter_seen=False)
    with pytest.raises(DataError, match="train names 2 items that the model does not know"):
        evaluate(model, other, test, ks=3)
    with pytest.raises(
        DataError, match=r"train names 2 items that the model does not know.*the same options, such as min"
    ):
        evaluate(model, pd.DataFrame(strange), test, ks=3)  # what a model was fitted on it knows
    # numbers where there are texts, and the reverse
    wrong = as_interactions(table_of(test).assign(item=lambda t: t["item"].astype(str)))
    with pytest.raises(
        DataError, match=r"item ids of test are strings, such as .* but those of the model are integers"
    ):
        evaluate(model, train, wrong, ks=3)
    with pytest.raises(DataError, match="item ids of test are strings"):
        evaluate(model, train, table_of(wrong), ks=3)
    for name, data in (("test", test.matrix[:7]), ("test", Interactions(test.matrix[:, :5]))):
        with pytest.raises(DataError, match=f"{name} must have .* one for each (user|item) of the model"):
            evaluate(model, train, data, ks=3)
    # nobody has ids
    plain = WALS(4, iterations=1).fit(train.matrix)
    with pytest.raises(TypeError, match="test must be a matrix, as there are no ids to read a table with"):
        evaluate(plain, train.matrix, table_of(test), ks=3)
    with pytest.raises(TypeError, match="unexpected argument 'colour'"):
        evaluate(model, table_of(train), table_of(test), ks=3, colour="red")
    with pytest.raises(TypeError, match="test: interactions must be"):
        evaluate(model, train, 5, ks=3)


def test_a_model_that_was_fitted_on_the_tests_is_refused(split):
    """It keeps what its users have from their lists, so that every test was a miss and the numbers were near 0."""
    model, train, test = split
    both = table_of(train), table_of(test)
    of_all = WALS(4, iterations=1).fit(pd.concat(both), value_column=False)
    for given, n in (((model, test, train), train.matrix.nnz), ((of_all, *both), test.matrix.nnz)):
        with pytest.raises(ValueError, match=f"model 'wals' was fitted on {n} of the {n} test entries: it would never"):
            evaluate(*given, ks=5, n_resamples=0)
    assert evaluate(model, train, test, ks=5, n_resamples=0, filter_seen=False).results["wals"]["recall@5"].value > 0


def test_a_model_without_ids_is_compared_by_those_of_train(split):
    model, train, test = split
    plain = WALS(4, iterations=3).fit(train.matrix)
    expected = results(evaluate(model, train, test, ks=3))
    for this_test in (test, apart(test), table_of(test), test.matrix):
        assert results(evaluate(plain, train, this_test, ks=3)) == expected
    assert results(evaluate(plain, table_of(train), table_of(test), ks=3)) == expected
    assert results(evaluate(plain, train.matrix, test, ks=3)) == expected  # by number, as there is no other way
    stranger = as_interactions(pd.DataFrame({"user": [train.user_ids[0]], "item": [-7]}))
    with pytest.raises(DataError, match="none of the 1 entries of test is of a user and an item that train knows"):
        evaluate(plain, train, stranger, ks=3)


def test_rows_of_a_table_that_nobody_knows_are_counted(split, tmp_path):
    model, train, test = split
    strangers = pd.DataFrame({"user": [train.user_ids[0], 7 if train.user_ids.kind == "integer" else "x"], "item": -7})
    both = pd.concat([table_of(test)[["user", "item"]], strangers], ignore_index=True)
    both.to_csv(tmp_path / "test.csv", index=False)
    table_of(train).to_parquet(tmp_path / "train.parquet")
    for this_test in (both, pl.from_pandas(both), pa.Table.from_pandas(both), tmp_path / "test.csv"):
        with pytest.warns(ParameterWarning, match=rf"2 of {len(both)} entries of test name a user or an item"):
            report = evaluate(model, str(tmp_path / "train.parquet"), this_test, ks=3)
        assert report.dropped == report.to_dict()["dropped"] == 2
        assert results(report) == results(evaluate(model, train, test, ks=3))
        note = "2 entries of test left out: the model does not know 1 user and 1 item, such as item -7"
        assert note in report.notes and note in str(report) and note in report._repr_html_()
    assert not any("left out:" in note for note in evaluate(model, train, test, ks=3).notes)
    named = [table_of(data).rename(columns={"user": "who", "item": "what"}) for data in (train, test)]
    options = {"user_column": "who", "item_column": "what"}
    assert results(evaluate(model, *named, ks=3, **options)) == results(evaluate(model, train, test, ks=3))
    fitted = as_interactions(named[0], **options)  # remembers the names
    assert results(evaluate(model, fitted, named[1], ks=3)) == results(evaluate(model, train, test, ks=3))
    other = WALS(4, iterations=3).fit(named[0], **options)  # so does the model
    for this_train in (named[0], train.matrix):
        assert results(evaluate(other, this_train, named[1], ks=3)) == results(evaluate(other, train, test, ks=3))


def test_new_users_and_candidates_by_id(split):
    model, train, test = split
    strong = strong_generalisation_split(as_interactions(table_of(train)), 10)
    new = WALS(4, iterations=3).fit(strong.train)
    expected = evaluate(new, strong.train.matrix, strong.test.matrix, ks=3, fold_in=strong.fold_in.matrix)
    rows = np.flatnonzero(np.diff(strong.test.matrix.indptr))
    assert expected.users.tolist() == rows.tolist()
    for fold_in, asked in ((strong.fold_in, strong.test), (strong.fold_in, table_of(strong.test)),
                           (strong.fold_in.matrix, strong.test.matrix)):  # fmt: skip
        assert results(evaluate(new, strong.train, asked, ks=3, fold_in=fold_in)) == results(expected)
    with_tables = evaluate(new, table_of(strong.train), table_of(strong.test), ks=3, fold_in=table_of(strong.fold_in))
    assert results(with_tables) == results(expected)

    candidates = sample_negatives(train, test, 5)
    sampled = evaluate(model, train, test, ks=3, candidates=candidates.matrix)
    for these in (candidates, apart(candidates), table_of(candidates)):
        assert results(evaluate(model, train, apart(test), ks=3, candidates=these)) == results(sampled)


def test_popularity_speaks_in_ids(split):
    _, train, test = split
    by_number, by_id = Popularity(train.matrix), Popularity(table_of(train))
    assert by_id.user_ids == train.user_ids and by_number.item_ids is None
    ids, scores = by_id.recommend(train.user_ids[[3, 1]], 20)
    numbers, same = by_number.recommend([3, 1], 20)
    assert ids.tolist() == train.item_ids.take(numbers).tolist() and scores.tolist() == same.tolist()
    assert None in ids  # they have some of the 20
    assert by_id.recommend_for(apart(test), 4)[0].tolist() == by_id.recommend_for(replace(
        test, matrix=test.matrix[np.diff(test.matrix.indptr) > 0], user_ids=None), 4)[0].tolist()  # fmt: skip
    assert results(evaluate(by_id, train, apart(test), ks=3)) == results(
        evaluate(by_number, train.matrix, test.matrix, ks=3)
    )
    with pytest.raises(KeyError, match="unknown user id"):
        by_id.recommend([-9] if by_id.user_ids.kind == "integer" else ["nobody"])
    with pytest.raises(IndexError, match="users must be in"):
        by_number.recommend([99])


# ------------------------------------------------------------------------------------------------------------ the lists


def test_metrics_of_lists_of_ids(split):
    model, train, test = split
    ids, _ = model.recommend(train.user_ids, 20)
    numbers = WALS(4, iterations=3).fit(train.matrix).recommend(range(len(train.user_ids)), 20)[0]
    expected = ranking_metrics(numbers, test.matrix, (3, 20), train=train.matrix)
    assert (np.asarray(numbers) == -1).any()
    lists = [[item for item in row] for row in np.asarray(ids, dtype=object)]
    minus = np.where(np.equal(np.asarray(ids), None), -1, np.asarray(ids)).astype(np.int64)
    for these in (ids, lists, minus):
        assert ranking_metrics(these, test, (3, 20), train=train) == expected
    assert ranking_metrics(ids, test, (3, 20), train=apart(train)) == expected
    assert ranking_metrics(numbers, test.matrix, (3, 20)).keys() == ranking_metrics(ids, test, (3, 20)).keys()
    # some users, in any order, by id
    chosen = train.user_ids[[9, 2, 5]]
    some = ranking_metrics(model.recommend(chosen, 3)[0], test, 3, users=chosen)
    assert some == ranking_metrics(numbers[[9, 2, 5], :3], test.matrix[[9, 2, 5]], 3)
    assert some == ranking_metrics(numbers[[9, 2, 5], :3], test.matrix, 3, users=[9, 2, 5])
    assert some == ranking_metrics(model.recommend(chosen, 3), test, 3)  # says itself whom each list is for
    for wrong, message in (
        ([[-7, *ids[0][1:3]]], "1 of 3 are none of these, such as -7"),
        ([["x", "y", "z"]], "ids must hold the item ids of test: item ids are integers, got str 'x'"),
        ([[0.5, 1, 2]], "ids must hold the item ids of test"),
    ):
        with pytest.raises(DataError, match=message):
            ranking_metrics(wrong, test, 3, users=chosen[:1])
    with pytest.raises(ValueError, match="users must name nobody twice"):
        ranking_metrics(ids[:2], test, 3, users=chosen[[0, 0]])
    with pytest.raises(DataError, match="users must be users of test"):
        ranking_metrics(ids[:1], test, 3, users=[-5])
    with pytest.raises(ValueError, match=r"shape \(B=40, K\)"):
        ranking_metrics(ids[:2], test, 3)
    with pytest.raises(TypeError, match="test must be a matrix or Interactions, got DataFrame"):
        ranking_metrics(ids, table_of(test), 3)


def test_metrics_of_lists_of_names():
    test = as_interactions(pd.DataFrame({"user": [1, 2], "item": ["b", "c"]}))
    with pytest.raises(DataError, match="1 of 4 are none of these, such as 'a'"):
        ranking_metrics([["a", "b"], ["c", None]], test, 2)
    found = ranking_metrics([["b", "c"], ["b", None]], test, 2)
    assert (found["recall@2"], found["mrr@2"]) == (0.5, 0.5)
    assert ranking_metrics(np.array([["b", "c"], ["b", "c"]]), test, 2)["recall@2"] == 1
    with pytest.raises(DataError, match="item ids are strings"):  # column numbers would be other items to somebody
        ranking_metrics([[0, 1], [0, 1]], test, 2)


# ----------------------------------------------------------------------------------------------------------- cold users


def cold_world(cold=6):
    """Train and test; the first users have no training entry. Item 0 is the most popular, then 1, ..."""
    rng = np.random.default_rng(2)
    liked = rng.random((60, 30)) < np.linspace(0.6, 0.05, 30)
    train, test = random_holdout(csr_matrix(liked.astype(float)), 0.3)
    keep = entry_rows(train) >= cold
    return select(train, keep), test


class Gives:
    """A model of somebody else's: one list, or one per user."""

    def __init__(self, lists):
        self.lists = np.asarray(lists)

    def recommend(self, users, k=10, *, filter_seen=True):
        return np.atleast_2d(self.lists[np.asarray(users)] if self.lists.ndim == 2 else self.lists)[:, :k].repeat(
            1 if self.lists.ndim == 2 else len(users), axis=0
        ), np.zeros((len(users), k))


def test_cold_users_are_shown_apart_with_what_they_got():
    train, test = cold_world()
    popular = Popularity(train).recommend_for(csr_matrix((1, 30)), 30)[0][0]
    n_cold = int((np.diff(test.indptr)[:6] > 0).sum())
    rotated = np.array([np.roll(popular, shift) for shift in range(60)])
    swapped = popular.copy()
    counts = Popularity(train).counts[popular]
    tie = int(np.flatnonzero(counts[1:] == counts[:-1])[0])
    swapped[[tie, tie + 1]] = swapped[[tie + 1, tie]]  # equally popular: nobody can say which is first
    for lists, words in (
        (popular, "they got the most popular items"),
        (swapped, "they got the most popular items"),
        (popular[::-1], "they got one list for all of them, which is not the most popular items"),
        (rotated, "they got different lists, which are not the most popular items"),
        (np.full(30, -1), "they got no items"),
    ):
        for batch_size in (1, 4, 999):
            report = evaluate(Gives(lists), train, test, ks=(3, 8), filter_seen=False, batch_size=batch_size)
            note = f"{n_cold} of {report.users.size} users have no training entry: {words}"
            assert report.notes[1] == note and note in str(report) and note in report._repr_html_()
            assert report.cold_users == n_cold and report.cold_lists["popularity"] == "the most popular items"
        assert set(report.cohorts) == {"known users", "cold users"}
        known, cold = report.cohorts["known users"], report.cohorts["cold users"]
        assert (cold.users, cold.users + known.users) == (n_cold, report.users.size)
        assert cold.entries + known.entries == report.entries == test.nnz
        for metric in ("recall@3", "ndcg@8"):
            mean = n_cold * cold.results["gives"][metric].value + known.users * known.results["gives"][metric].value
            assert mean / report.users.size == pytest.approx(report.results["gives"][metric].value)
        lines = str(report).splitlines()
        for metric in ("recall@3", "ndcg@3"):  # one below the other
            (first,) = (n for n, line in enumerate(lines) if line.split()[:2] == [metric, "all"])
            assert [line.split()[:2] for line in lines[first + 1 : first + 3]] == [[metric, "known"], [metric, "cold"]]
        said = json.loads(json.dumps(report.to_dict()))
        assert said["cold_users"] == n_cold and said["notes"] == report.notes and "cold users" in said["cohorts"]
        assert said["cold_lists"]["gives"] == words.removeprefix("they got ")
    usual = str(evaluate(Gives(popular), train, test, filter_seen=False, ks=(20, 30)))
    assert max(map(len, usual.splitlines())) <= 100


def test_one_cold_user_and_only_cold_users():
    train, test = cold_world(1)
    report = evaluate(Popularity(train), train, test, ks=3)
    assert (
        report.notes[1].startswith("1 of ")
        and "users has no training entry: they got the most popular" in report.notes[1]
    )
    train, test = cold_world()
    only = select(test, entry_rows(test) < 6)
    report = evaluate(Popularity(train), train, only, ks=3)
    assert set(report.cohorts) == {"cold users"} and report.cohorts["cold users"].users == report.cold_users == 6
    assert report.cohorts["cold users"].results["popularity"]["recall@3"] == report.results["popularity"]["recall@3"]
    known = select(test, entry_rows(test) >= 6)
    report = evaluate(Popularity(train), train, known, ks=3)
    assert report.cohorts == {} and report.cold_users == 0 and len(report.notes) == 1 and report.cold_lists == {}


def test_new_users_of_whom_nothing_is_known():
    train, test = cold_world()
    split = strong_generalisation_split(train + test, 20, test_fraction=0.5)
    fold_in = split.fold_in.copy()
    fold_in = select(fold_in, entry_rows(fold_in) > 2)
    report = evaluate(Popularity(split.train), split.train, split.test, ks=3, fold_in=fold_in)
    count = int((np.diff(split.test.indptr)[:3] > 0).sum())
    words = f"{count} of {report.users.size} users have no entry in fold_in: they got the most popular items"
    assert count > 1 and report.notes[1] == words and report.cohorts["cold users"].users == count


def test_the_policy_for_cold_users_is_handed_on():
    train, test = cold_world()

    class Asked(Gives):
        def recommend(self, users, k=10, *, filter_seen=True, cold_users="popular"):
            self.cold_users = cold_users
            return super().recommend(users, k, filter_seen=filter_seen)

    model = Asked(np.arange(30))
    for options, expected in (({}, "popular"), ({"cold_users": "mean"}, "mean")):
        evaluate(model, train, test, ks=3, filter_seen=False, **options)
        assert model.cold_users == expected
    with pytest.raises(TypeError, match="cold_users='mean' needs a model whose recommend takes cold_users="):
        evaluate(Gives(np.arange(30)), train, test, ks=3, cold_users="mean")


@pytest.mark.parametrize("data", ["empty", "zeros", "negative"])
def test_nothing_to_find_is_an_error(data):
    train, test = cold_world()
    test = {"empty": csr_matrix(test.shape), "zeros": test * 0, "negative": -test}[data]
    what = "entry" if data == "empty" else "user with a value above 0"
    with pytest.raises(ValueError, match=f"test has no {what}, so there is nothing to measure"):
        evaluate(Popularity(train), train, test, ks=3)


def test_lists_longer_than_the_catalogue_end_where_it_does():
    """Whatever the length, metrics are those of lists that are filled up with nothing."""
    train, test = cold_world()
    model, longest = WALS(4, iterations=2, num_threads=1).fit(train), 10**12
    report = evaluate(model, train, test, ks=(5, 30, 40, longest), n_resamples=0)
    lists = model.recommend(np.arange(60), 40)[0]
    assert lists.shape == (60, 40) and (lists[:, 30:] == -1).all()
    more = {"vectors": model.item_factors, "expected": Popularity(train).recommend(np.arange(60), 40)[0]}
    direct = ranking_metrics(lists, test, (5, 30, 40), train=train, **more)
    found = {metric: estimate.value for metric, estimate in report.results["wals"].items()}
    assert {metric: found[metric] for metric in direct if "@" in metric} == pytest.approx(
        {metric: value for metric, value in direct.items() if "@" in metric}
    )
    for metric in (metric for metric in found if metric.endswith("@40")):
        name = metric.split("@")[0]
        factor = 40 / longest if name in ("precision", "serendipity") else 1
        assert found[f"{name}@{longest}"] == pytest.approx(found[metric] * factor, rel=1e-9, abs=0), metric


# ---------------------------------------------------------------------------------------------------- implicit's models


def test_models_of_implicits_signature():
    train, test = cold_world()
    model = AlternatingLeastSquares(4, iterations=3, random_state=0)
    model.fit(train, show_progress=False)
    report = evaluate(model, train, test, ks=(5, 28))
    ids, scores = model.recommend(np.arange(60), csr_matrix(train), N=28)
    ids = np.where(scores > np.finfo(np.float32).min, ids, -1)  # filtered items are there, last
    assert (ids == -1).any()
    more = {"vectors": model.item_factors, "expected": Popularity(train).recommend(np.arange(60), 28)[0]}
    direct = ranking_metrics(ids, test, (5, 28), train=train, **more)
    for metric, estimate in report.results["alternatingleastsquares"].items():
        assert estimate.value == pytest.approx(direct[metric]), metric
    assert report.cold_users == 6
    longer = evaluate(model, train, test, ks=40, filter_seen=False)  # more than there are items
    assert (longer.per_user["alternatingleastsquares"]["plain_recall@40"] == 1).all()
    data = Interactions(
        train, *(as_interactions(pd.DataFrame({"user": range(n), "item": range(n)})).user_ids for n in (60, 30))
    )
    assert results(evaluate(model, data, apart(replace(data, matrix=test)), ks=(5, 28))) == results(report)

    split = strong_generalisation_split(train, 15)
    model = AlternatingLeastSquares(4, iterations=3, random_state=0)
    model.fit(split.train, show_progress=False)
    report = evaluate(model, split.train, split.test, ks=5, fold_in=split.fold_in)
    ids, _ = model.recommend(np.zeros(15, int), split.fold_in, N=5, recalculate_user=True)
    assert report.results["alternatingleastsquares"]["ndcg@5"].value == ranking_metrics(ids, split.test, 5)["ndcg@5"]
    with pytest.raises(ValueError, match="candidates need a model whose recommend takes allow="):
        drawn = sample_negatives(split.fold_in, split.test, 2)
        evaluate(model, split.train, split.test, ks=1, fold_in=split.fold_in, candidates=drawn)
    with pytest.raises(ValueError, match="model was fitted on 45 users, but train has 60 rows"):
        evaluate(model, train, test, ks=5)
    with pytest.raises(ValueError, match="model was fitted on 30 items, but train has 12 columns"):
        evaluate(model, split.train[:, :12], split.test[:, :12], ks=5, fold_in=split.fold_in[:, :12])


def test_implicits_own_model():
    implicit = pytest.importorskip("implicit.als", reason="implicit is not installed")
    train, test = cold_world()
    theirs = implicit.AlternatingLeastSquares(4, iterations=2, random_state=0)
    theirs.fit(train, show_progress=False)
    ours = AlternatingLeastSquares(4, iterations=2, random_state=0)
    ours.user_factors, ours.item_factors = theirs.user_factors, theirs.item_factors
    reports = [evaluate(model, train, test, ks=5, baseline=False) for model in (theirs, ours)]
    assert results(reports[0]) == results(reports[1])


def test_lists_that_end_early_are_short():
    train, test = cold_world()
    short = evaluate(Gives(np.arange(4)), train, test, ks=9, filter_seen=False)
    padded = evaluate(Gives(np.r_[np.arange(4), np.full(5, -1)]), train, test, ks=9, filter_seen=False)
    assert results(short) == results(padded)


# --------------------------------------------------------------------------------------------------------------- tables


class _Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.cells, self.tags, self._open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open = tag

    def handle_data(self, text):
        if self._open in ("td", "th") and text.strip():
            self.cells.append(text)


def test_a_report_is_a_table():
    train, test = cold_world()
    model = WALS(3, iterations=2).fit(train)
    report = evaluate(model, train, test, ks=(3, 8), few_shot=4)
    table = report.to_arrow()
    assert table.column_names == ["model", "cohort", "metric", "value", "low", "high", "users"]
    rows = table.to_pylist()
    parts = {"all": report.results, **{name: cohort.results for name, cohort in report.cohorts.items()}}
    assert {row["cohort"] for row in rows} == set(parts) and "cold users" in parts
    assert len(rows) == sum(len(metrics) for part in parts.values() for metrics in part.values())
    for row in rows:
        estimate = parts[row["cohort"]][row["model"]][row["metric"]]
        assert (row["value"], row["low"], row["high"]) == estimate
        assert row["users"] == (report.users.size if row["cohort"] == "all" else report.cohorts[row["cohort"]].users)
    frame, other = report.to_pandas(), report.to_polars()
    assert isinstance(frame, pd.DataFrame) and isinstance(other, pl.DataFrame)
    assert frame["value"].tolist() == other["value"].to_list() == [row["value"] for row in rows]
    wide = frame[frame["cohort"] == "all"].pivot(index="metric", columns="model", values="value")
    assert wide.loc["recall@3", "wals"] == report.results["wals"]["recall@3"].value

    cells = _Cells(report._repr_html_())
    assert {"table", "p"} <= set(cells.tags) and "script" not in cells.tags
    assert str(report.results["wals"]["recall@3"]) in cells.cells and "cold users" in cells.cells
    assert Estimate(0.5, 0.25, 0.75)._repr_html_() == "0.5000 <small>[0.2500, 0.7500]</small>"
    assert Estimate(0.5, None, None)._repr_html_() == "0.5000"


def test_names_in_html_are_escaped():
    train, test = cold_world()
    report = evaluate(type("<b>&</b>", (Gives,), {})(np.arange(30)), train, test, ks=3, filter_seen=False)
    text = report._repr_html_()
    assert "<b>" not in text and "&lt;b&gt;&amp;&lt;/b&gt;" in text


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_what_is_missing_is_named(package, monkeypatch):
    train, test = cold_world()
    report = evaluate(Popularity(train), train, test, ks=3, n_resamples=0)
    assert report.to_arrow()["low"].null_count == report.to_arrow().num_rows
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=package):
        getattr(report, f"to_{package}")()
