"""Fits on several ranks that begin with an earlier model, and models in halves: what one process has, to the bit."""

import shutil
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from ranks import run_ranks
from test_sharded_fit import SHAPE, make_matrix, make_model

from wals_gpu import WALS, CheckpointError, Interactions, ModelFormatError
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.data.stored import StoredMatrix, write_stored
from wals_gpu.distributed import LocalGroup, fit_sharded, shard
from wals_gpu.model.starting import SavedStart
from wals_gpu.priors.linear import LinearPrior

pytest.importorskip("torch", reason="ranks need torch")

#: The model that a fit begins with, and how factors travel.
STARTS = (("plain", "halo"), ("parts", "all"), ("parts", "halo"), ("halves", "all"))
KINDS = ("ids", "rows")


def todays(kind, matrix=None):
    """Interactions with ids, or with row numbers alone."""
    matrix = make_matrix(n=20_000) if matrix is None else matrix
    if kind == "rows":
        return Interactions(matrix)
    users = Ids(np.arange(SHAPE[0]) * 3, "user")
    return Interactions(matrix, users, Ids(pa.array([f"i{n:05}" for n in range(SHAPE[1])]), "item"))


def yesterdays(kind):
    """Others who have left since, or were not there yet; with row numbers, fewer."""
    matrix = make_matrix(n=15_000, seed=1)[:4300, :3000]
    if kind == "rows":
        return Interactions(matrix)
    return Interactions(
        matrix, Ids(np.arange(4300) * 4 + 4, "user"), Ids(pa.array([f"i{n:05}" for n in range(60, 3060)]), "item")
    )


def prior():
    """Of the items."""
    return LinearPrior(np.random.default_rng(1).normal(size=(SHAPE[1], 5)).astype(np.float32))


def save_starts(group, folder):
    for kind in KINDS:
        model = fit_sharded(make_model(iterations=1), yesterdays(kind), group)
        model.save(f"{folder}/parts-{kind}")
        model.save(f"{folder}/halves-{kind}", dtype="float16")


def fit_all(group, folder):
    """Every case on the ranks of a group; each rank leaves what it has."""

    def keep(name, model):
        path = f"{folder}/{name}-{group.rank}-of-{group.size}.npz"
        np.savez(path, users=model.local.user_factors, items=model.local.item_factors)

    for kind in KINDS:
        for start, mode in STARTS:
            model = make_model(iterations=2, solver="cg")
            options = {"warm_start": f"{folder}/{start}-{kind}", "mode": mode}
            keep(f"{start}-{kind}-{mode}", fit_sharded(model, todays(kind), group, **options))
    model = make_model(iterations=2, item_prior=prior())
    keep("prior", fit_sharded(model, todays("ids"), group, warm_start=f"{folder}/parts-ids"))
    rng = np.random.default_rng(5)
    shards = shard(todays("ids", make_matrix()), group, 18, SolveOptions())
    model = make_model(iterations=5, solver="cg", random_state=rng)
    keep("share", fit_sharded(model, shards, group, validation=0.2, patience=1))
    return rng.random()


PROGRAM = """
from test_warm_starts import fit_all, save_starts
pair = dist.new_group([0, 1])
if rank < 2:
    pair = TorchGroup(pair)
    save_starts(pair, folder)
    print(fit_all(pair, folder))
group.barrier()
print(fit_all(group, folder))
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fits of one, two and three ranks; two of these have written the models in parts."""
    folder = tmp_path_factory.mktemp("starts")
    for kind in KINDS:
        make_model(iterations=1).fit(yesterdays(kind)).save(folder / f"plain-{kind}")
    out = run_ranks(PROGRAM, 3, folder)
    assert {float(line) for text in out for line in text.splitlines()} == {fit_all(LocalGroup(), folder)}
    return folder


def assert_all_have(folder, name, model):
    for size in (1, 2, 3):
        parts = [np.load(folder / f"{name}-{rank}-of-{size}.npz") for rank in range(size)]
        np.testing.assert_array_equal(np.concatenate([part["users"] for part in parts]), model.user_factors)
        for part in parts:
            np.testing.assert_array_equal(part["items"], model.item_factors)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_start_is_that_of_one_process(fitted, tmp_path, kind):
    """From a model in one part, in two, and in halves, whatever the number of ranks that begin with it."""
    write_stored(tmp_path / "stored", todays(kind).matrix)
    stored = todays(kind, StoredMatrix(tmp_path / "stored"))
    cold = make_model(iterations=2, solver="cg").fit(stored)
    for start, mode in STARTS:
        model = make_model(iterations=2, solver="cg").fit(stored, warm_start=fitted / f"{start}-{kind}")
        assert not np.array_equal(model.user_factors, cold.user_factors)
        assert_all_have(fitted, f"{start}-{kind}-{mode}", model)


def test_priors_begin_with_what_the_start_says(fitted):
    model = make_model(iterations=2, item_prior=prior()).fit(todays("ids"), warm_start=fitted / "parts-ids")
    assert_all_have(fitted, "prior", model)


def test_shards_can_be_held_out_from_and_a_generator_drawn_from(fitted):
    """As of interactions that every rank has all of."""
    model = make_model(iterations=5, solver="cg", random_state=np.random.default_rng(5))
    whole = fit_sharded(model, todays("ids", make_matrix()), validation=0.2, patience=1)
    assert whole.history[-1].validation > 0
    assert_all_have(fitted, "share", whole.local)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_those_of_one_process(fitted, tmp_path, kind):
    WALS.load(fitted / f"parts-{kind}").save(tmp_path / "one", dtype="float16")
    one, halves = WALS.load(tmp_path / "one"), WALS.load(fitted / f"halves-{kind}")
    whole = WALS.load(fitted / f"parts-{kind}")
    assert not np.array_equal(halves.user_factors, whole.user_factors)
    for side in ("user_factors", "item_factors"):
        np.testing.assert_array_equal(getattr(halves, side), getattr(one, side))
    some = WALS.load(fitted / f"halves-{kind}", users=slice(1000, 4100))
    np.testing.assert_array_equal(some.user_factors, one.user_factors[1000:4100])
    np.testing.assert_array_equal(some.fitted.popularity(), whole.fitted.popularity())
    with pytest.raises(ValueError, match="dtype must be 'float16', or None for that of the model, got 'bfloat16'"):
        fit_sharded(make_model(iterations=0), todays(kind)).save(tmp_path / "none", dtype="bfloat16")
    assert not (tmp_path / "none").exists()


def test_what_is_not_needed_is_not_read(fitted, tmp_path):
    """A part is missing, and those whose users are in the other one do not mind."""
    shutil.copytree(fitted / "parts-ids", tmp_path / "model")
    (gone,) = (tmp_path / "model").glob("users-1-*")
    shutil.rmtree(gone)
    users = WALS.load(fitted / "parts-ids")
    start, new = SavedStart(tmp_path / "model"), np.full((3, 32), 7, np.float32)
    start.take_over("user", new, Ids(np.array([3, 8, 12]), "user"), 1)
    np.testing.assert_array_equal(new, [[7] * 32, users.user_factors[1], users.user_factors[2]])
    with pytest.raises(ModelFormatError, match=r"users-1-[0-9a-f]{8} is missing"):
        start.take_over("user", new, Ids(np.array([3, 8, 17_000]), "user"), 1)
    assert start.users_between(Ids(np.array([3, 8, 13]), "user"), slice(0, 3)) == slice(0, 3)


def test_what_cannot_be_begun_with_is_refused_as_in_one_process(fitted, tmp_path):
    data = todays("ids")
    others = Interactions(data.matrix, Ids(pa.array([f"u{n:05}" for n in range(SHAPE[0])]), "user"), data.item_ids)
    fit_sharded(make_model(iterations=1), data, checkpoint_dir=tmp_path / "c", warm_start=fitted / "parts-ids")
    for interactions, settings, start, error, text in (
        (data, {"factors": 5}, fitted / "parts-ids", ValueError, "it has 32, this fit 5"),
        (data, {"factors": 5}, WALS.load(fitted / "plain-ids"), ValueError, "as many factors: it has 32, this fit 5"),
        (others, {}, fitted / "parts-ids", ValueError, "warm_start: user ids are strings, the earlier ones integers"),
        (data.matrix, {}, fitted / "parts-ids", ValueError, "interactions have ids and the earlier ones none, or the"),
        (data, {}, fitted / "plain-rows", ValueError, "interactions have ids and the earlier ones none, or the"),
        (data, {}, tmp_path / "nothing", FileNotFoundError, "no model folder at"),
        (data, {}, tmp_path / "c", ModelFormatError, "holds a checkpoint of a fit, not a model"),
        (data, {}, 3, TypeError, "warm_start must be True, False, a fitted WALS or the path of one, got 3"),
    ):
        model = make_model(**settings)
        for fit in (model.fit, partial(fit_sharded, model)):
            with pytest.raises(error, match=text):
                fit(interactions, warm_start=start)
    resume = {"checkpoint_dir": tmp_path / "c", "resume": True}
    with pytest.raises(CheckpointError, match="warm_start = True there, None here"):
        fit_sharded(make_model(iterations=2), data, **resume)
    going_on = fit_sharded(make_model(iterations=2), data, warm_start=fitted / "parts-ids", **resume)
    whole = fit_sharded(make_model(iterations=2), data, warm_start=WALS.load(fitted / "parts-ids"))
    np.testing.assert_array_equal(going_on.local.user_factors, whole.local.user_factors)


def test_a_file_of_numbers_begins_with_a_model_of_texts(tmp_path):
    (tmp_path / "some.csv").write_text("user_id,item_id\n007,1\nann,2\n8,3\n")
    (tmp_path / "more.csv").write_text("user_id,item_id\n8,3\n9,1\n9,2\n")
    some, more = str(tmp_path / "some.csv"), str(tmp_path / "more.csv")
    fit_sharded(make_model(factors=3), some).save(tmp_path / "model")
    whole = make_model(factors=3, iterations=0).fit(more, warm_start=tmp_path / "model")
    model = fit_sharded(make_model(factors=3, iterations=0), more, warm_start=tmp_path / "model").local
    assert model.user_ids.tolist() == whole.user_ids.tolist() == ["8", "9"]
    np.testing.assert_array_equal(model.user_factors, whole.user_factors)
