"""Several models on the same users: lists of any model, paired intervals, exact p-values, Holm."""

from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse import random as random_matrix
from scipy.stats import permutation_test

from wals_gpu import WALS, DataError, ParameterWarning, as_interactions
from wals_gpu.als import AlternatingLeastSquares
from wals_gpu.evaluation import Comparison, Popularity, bootstrap_interval, evaluate, random_holdout
from wals_gpu.evaluation.resampling import holm, paired_p_values
from wals_gpu.report import write_report

KS = (3, 6)


def tastes(n_users=60, seed=0):
    rng = np.random.default_rng(seed)
    same = np.arange(n_users)[:, None] % 3 == np.arange(24) % 3
    return csr_matrix((rng.random((n_users, 24)) < np.where(same, 0.8, 0.1)).astype("float32"))


def table_of(matrix, user="u{:02}", item="i{:02}"):
    coo = matrix.tocoo()
    columns = {"user": [user.format(r) for r in coo.row], "item": [item.format(c) for c in coo.col]}
    return pd.DataFrame(columns)


@pytest.fixture(scope="module")
def parts():
    train, test = random_holdout(tastes(), 0.3, per_user=True)
    return train, test


@pytest.fixture(scope="module")
def compared(parts):
    train, test = parts
    return evaluate({f"d{d}": WALS(d, num_threads=1).fit(train) for d in (3, 1)}, train, test, KS)


# ------------------------------------------------------------------------------------------------------------ numbers


def test_each_model_has_the_numbers_that_it_has_alone(parts, compared):
    train, test = parts
    alone = evaluate(WALS(3, num_threads=1).fit(train), train, test, KS)
    assert isinstance(compared, Comparison) and list(compared.results) == ["d3", "d1", "popularity"]
    assert (
        compared.results["d3"] == alone.results["wals"]
        and compared.results["popularity"] == alone.results["popularity"]
    )
    assert np.array_equal(compared.users, alone.users)
    for k in KS:
        assert compared.recommended["d3"][k].sum() == k * len(alone.users)
        assert np.count_nonzero(compared.recommended["d3"][k]) / 24 == compared.results["d3"][f"coverage@{k}"].value


def test_differences_are_paired(compared):
    one = compared.between("d3", "d1")["ndcg@6"]
    of_users = compared.per_user["d3"]["ndcg@6"] - compared.per_user["d1"]["ndcg@6"]
    assert (one.value, one.low, one.high) == pytest.approx(bootstrap_interval(of_users))
    assert one.low > 0 and one.p_value < 0.01 and one.is_clear
    means = [compared.results[name]["ndcg@6"].value for name in ("d3", "d1")]
    assert one.ratio == pytest.approx(means[0] / means[1]) and one.ratio_low < one.ratio < one.ratio_high
    turned = compared.between("d1", "d3")["ndcg@6"]
    assert (turned.value, turned.low, turned.high) == (-one.value, -one.high, -one.low)
    assert turned.ratio_low == 1 / one.ratio_high and turned.p_adjusted == one.p_adjusted
    with pytest.raises(KeyError, match="'d3' and 'd9' were not compared; there are 'd3', 'd1', 'popularity'"):
        compared.between("d3", "d9")


def test_p_values_of_few_users_are_those_of_all_signs():
    """Counted here one by one, for more signs than are enumerated and for fewer."""
    rng = np.random.default_rng(1)
    table = np.column_stack([rng.normal(0.4, 1, 11), rng.integers(-1, 3, 11), np.zeros(11), np.full(11, 0.1)])
    signs = np.array(list(itertools.product([1, -1], repeat=11)))
    exact = (np.abs(signs @ table) >= np.abs(table.sum(axis=0)) - 1e-12).mean(axis=0)
    assert exact[2] == 1 and exact[3] == 2 / 2**11
    assert paired_p_values(table, 2**11, np.random.default_rng(0)) == pytest.approx(exact)
    drawn = paired_p_values(table, 2000, np.random.default_rng(0))
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 2000)) and not np.array_equal(drawn, exact)
    assert np.array_equal(paired_p_values(table[:1], 99, np.random.default_rng(0)), np.ones(4))
    assert np.array_equal(paired_p_values(table[:, 2:3], 99, np.random.default_rng(0)), [1.0])


def test_p_values_of_more_users_agree_with_scipy():
    of_users = np.random.default_rng(4).normal(0.08, 0.5, 150)
    ours = paired_p_values(of_users[:, None], 4000, np.random.default_rng(0))[0]
    mean = lambda values, axis: values.mean(axis=axis)  # noqa: E731
    theirs = permutation_test(
        (of_users,), mean, permutation_type="samples", n_resamples=1500, vectorized=True, random_state=0
    )
    assert 0.01 < ours < 0.5 and ours == pytest.approx(theirs.pvalue, abs=5 * np.sqrt(ours / 1500))


def test_holm_is_the_naive_one():
    rng = np.random.default_rng(3)
    for m in (1, 2, 3, 6, 15):
        p = np.round(rng.random(m) ** 3, 2).tolist()  # some are equal
        adjusted = holm(p)
        for level in np.linspace(0.005, 0.995, 100):
            rejected, left = set(), sorted(range(m), key=lambda i: p[i])
            while left and p[left[0]] * len(left) <= level:  # the procedure as it is told in words
                rejected.add(left.pop(0))
            assert rejected == {i for i in range(m) if adjusted[i] <= level}


def test_holm_is_over_the_pairs_of_a_metric(compared):
    for metric in ("recall@3", "novelty@6"):
        of_metric = compared.differences.of(metric)
        assert [(one.first, one.second) for one in of_metric] == [
            ("d3", "d1"), ("d3", "popularity"), ("d1", "popularity"),
        ]  # fmt: skip
        assert [one.p_adjusted for one in of_metric] == holm([one.p_value for one in of_metric])


def test_tables_and_json(compared):
    table = compared.differences.to_pandas()
    assert len(table) == 3 * 20 and list(table)[:5] == ["metric", "first", "second", "value", "low"]
    found = json.loads(json.dumps(compared.to_dict()))
    assert found["differences"][0]["first"] == "d3" and set(found["results"]) == {"d3", "d1", "popularity"}
    assert "d3 - popularity" in str(compared) and "p (Holm)" in str(compared) and "clear" in str(compared)
    assert compared._repr_html_().count("<table>") == 2
    assert compared.to_pandas().query("model == 'd1' and metric == 'recall@3'")["value"].item() > 0


def test_the_same_seed_gives_the_same_numbers(parts):
    train, test = parts
    models = {"a": Popularity(train), "b": WALS(2, num_threads=1).fit(train)}
    one, two = (evaluate(models, train, test, 5, n_permutations=500, random_state=7) for _ in range(2))
    assert one.differences == two.differences
    other = evaluate(models, train, test, 5, n_permutations=500, random_state=8)
    assert other.differences != one.differences
    without = evaluate(models, train, test, 5, n_permutations=0, n_resamples=0, baseline=False).differences[0]
    assert (without.low, without.p_value, without.p_adjusted, without.ratio_low) == (None,) * 4


# ---------------------------------------------------------------------------------------------------------- any model


def test_implicit_and_the_drop_in_are_ranked_alike(parts):
    train, test = parts
    models = {"ours": AlternatingLeastSquares(factors=3, random_state=0, num_threads=1)}
    try:
        from implicit.als import AlternatingLeastSquares as Theirs

        models["implicit"] = Theirs(factors=3, random_state=0, num_threads=1, use_gpu=False)
    except ImportError:
        pass
    for model in models.values():
        model.fit(train, show_progress=False)
    found = evaluate(models, train, test, KS)
    for name in models:
        assert found.between(name, "popularity")["recall@6"].low > 0


def test_a_model_of_rectools_stands_with_its_dataset(parts, tmp_path):
    pytest.importorskip("rectools")
    from rectools.dataset import Dataset
    from rectools.models import PopularModel

    train, test = parts
    train_table, test_table = table_of(train), table_of(test)
    # It has never heard of u00: no list. Popularity of equal items may have another order, so of scores only.
    known = train_table[train_table["user"] != "u00"].rename(columns={"user": "user_id", "item": "item_id"})
    dataset = Dataset.construct(known.astype(object).assign(weight=1.0, datetime="2024-01-01"))

    class NoColdUsers(PopularModel):
        recommends_for_cold = False

    model = NoColdUsers().fit(dataset)
    with pytest.warns(ParameterWarning, match="'theirs' has no list for 1 of 60 users: they count as empty lists"):
        found = evaluate({"theirs": (model, dataset)}, train_table, test_table, KS)
    row = found.user_ids.tolist().index("u00")
    assert found.per_user["theirs"]["hit_rate@6"][row] == 0 and "empty lists" in found.notes[-1]
    external = model.recommend(np.unique(known["user_id"]), dataset, 6, True)
    wanted = test_table.merge(external, left_on=["user", "item"], right_on=["user_id", "item_id"])
    hits = wanted.groupby("user").size().reindex(found.user_ids, fill_value=0)
    asked = test_table.groupby("user").size().reindex(found.user_ids)
    assert found.per_user["theirs"]["recall@6"] == pytest.approx((hits / asked.clip(upper=6)).to_numpy())
    more = Dataset.construct(
        pd.concat([known, wanted[["user_id", "item_id"]]]).assign(weight=1.0, datetime="2024-01-01")
    )
    with pytest.raises(ValueError, match=f"'theirs' was fitted on {len(wanted)} of the {test.nnz} test entries"):
        evaluate({"theirs": (NoColdUsers().fit(more), more)}, train_table, test_table, KS)
    page = write_report(
        tmp_path / "r.html", found, model={"theirs": (model, dataset)}, train=train_table, test=test_table
    )
    assert "NoColdUsers" in page.read_text("utf-8")  # measured and named; it gives no scores to look at
    with pytest.raises(TypeError, match=r"'theirs' recommends from a Dataset: give the pair \(model, dataset\)"):
        evaluate({"theirs": model}, train_table, test_table)
    with pytest.raises(TypeError, match=r"in a pair with its Dataset"):
        evaluate({"theirs": (model, train_table)}, train_table, test_table)


def test_models_of_other_users_and_items(parts):
    """One knows some users and items only, in another order, and has another history."""
    train, test = parts
    table = table_of(train)
    whole = as_interactions(table)
    few = table[(table["user"] < "u40") & (table["item"] != "i05")]
    more = pd.concat([few, pd.DataFrame({"user": ["u01", "zz"], "item": ["new", "new"]})])
    models = {"whole": WALS(3, num_threads=1).fit(whole), "few": WALS(3, num_threads=1).fit(more)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ParameterWarning)
        found = evaluate(models, whole, table_of(test), KS)
    assert list(found.users) == list(range(60))
    few_model, users = models["few"], found.user_ids
    for row in range(len(found.users)):  # from u40 on they are nobody to it: they get what is popular there
        user = users[row]
        mine = set(table["item"][table["user"] == user]) - {"i05"}
        ids, _ = few_model.recommend([user], 6, unknown="popular", deny=[sorted(mine)])
        hits = set(ids[0]) & set(table_of(test)["item"][table_of(test)["user"] == user])
        assert found.per_user["few"]["precision@6"][row] == pytest.approx(len(hits) / 6)
    assert found.results["whole"] == evaluate(models["whole"], whole, table_of(test), KS).results["wals"]


def test_a_model_that_has_seen_the_answers_is_refused(parts):
    train, test = parts
    models = {"fair": WALS(2, num_threads=1).fit(train), "leaky": WALS(2, num_threads=1).fit(train + test)}
    with pytest.raises(ValueError, match=f"'leaky' was fitted on {test.nnz} of the {test.nnz} test entries"):
        evaluate(models, train, test, 3)
    with pytest.raises(ValueError, match=f"'wals' was fitted on {test.nnz} of the {test.nnz} test entries"):
        evaluate(models["leaky"], train, test, 3)
    found = evaluate(models["leaky"], train, test, 3, filter_seen=False, n_resamples=0)
    assert found.results["wals"]["recall@3"].value > 0  # then it may


class KnowsFew:
    """Somebody's own model, which raises for users from 20 on."""

    def __init__(self, train):
        self.popular = Popularity(train)

    def recommend(self, users, k=10, *, filter_seen=True):
        if max(users) >= 20:
            raise KeyError("never heard of them")
        return self.popular.recommend(users, k, filter_seen=filter_seen)


def test_whom_a_model_does_not_know_gets_an_empty_list(parts):
    train, test = parts
    with pytest.warns(ParameterWarning, match="model 'few' has no list for 40 of 60 users: they count as empty"):
        found = evaluate({"few": KnowsFew(train)}, train, test, 5)
    assert (found.per_user["few"]["recall@5"][20:] == 0).all()
    ours, popular = (found.per_user[name]["recall@5"][:20] for name in ("few", "popularity"))
    assert np.array_equal(ours, popular) and popular.any()
    with pytest.raises(KeyError, match="never heard of them"):  # nobody is known: that is no answer
        late = csr_matrix(test.multiply(np.arange(60)[:, None] >= 20))
        evaluate({"few": KnowsFew(train)}, train, late, 5)


class KnowsNothing:
    def recommend(self, users, k=10, *, filter_seen=True):
        return np.full((len(users), k), -1), np.full((len(users), k), -np.inf)


def test_json_of_no_list_at_all_is_json(parts):
    with pytest.warns(ParameterWarning, match="has no list for 60 of 60 users"):
        found = evaluate({"none": KnowsNothing()}, *parts, 5, n_permutations=9)
    assert np.isnan(found.results["none"]["gini@5"].value)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))["results"]["none"]
    assert plain["gini@5"]["value"] is None and plain["coverage@5"]["value"] == 0


def test_new_users_and_candidates(parts):
    from wals_gpu.evaluation import sample_negatives, strong_generalisation_split

    split = strong_generalisation_split(tastes(), 15)
    models = {f"d{d}": WALS(d, num_threads=1).fit(split.train) for d in (3, 2)}
    found = evaluate(models, split.train, split.test, 5, fold_in=split.fold_in)
    of_first = models["d3"].item_factors  # which the diversity of all lists is measured by
    alone = evaluate(models["d2"], split.train, split.test, 5, fold_in=split.fold_in, vectors=of_first)
    assert found.results["d2"] == alone.results["wals"]
    train, test = parts
    candidates = sample_negatives(train, test, 4)
    models = {f"d{d}": WALS(d, num_threads=1).fit(train) for d in (3, 2)}
    found = evaluate(models, train, test, 2, candidates=candidates)
    assert found.results["d3"] == evaluate(models["d3"], train, test, 2, candidates=candidates).results["wals"]
    cold = csr_matrix(train.multiply(np.arange(60)[:, None] > 0))
    cold.eliminate_zeros()
    said = evaluate({"w": WALS(2).fit(cold), "p": Popularity(cold)}, cold, test, 2, cold_users="mean").notes[1]
    assert said.startswith("1 of 60 users has no training entry: w gave them ") and "p gave them the most pop" in said


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ({}, ValueError, "the dict is empty"),
        ({1: "model"}, TypeError, "the names of models must be texts, got 1"),
        ({"popularity": "model"}, ValueError, "'popularity' is the name of the baseline"),
        ({"a": "no model"}, TypeError, "model must be a fitted model with recommend"),
    ],
)
def test_what_is_no_set_of_models_is_refused(parts, models, error, message):
    with pytest.raises(error, match=message):
        evaluate(models, *parts)


def test_models_of_different_ids_need_ids(parts):
    train, test = parts
    models = {
        "a": WALS(2, num_threads=1).fit(table_of(train)),
        "b": WALS(2, num_threads=1).fit(table_of(random_matrix(20, 9, 0.5, "csr", random_state=0))),
    }
    with pytest.raises(DataError, match="'a' and 'b' have different user ids"):
        evaluate(models, train, test)
    with pytest.raises(DataError, match="the user ids of model 'c' are integers, those of train strings"):
        numbers = table_of(train, "{:d}", "{:d}").astype(int)
        evaluate({"c": WALS(2, num_threads=1).fit(numbers)}, as_interactions(table_of(train)), table_of(test))
