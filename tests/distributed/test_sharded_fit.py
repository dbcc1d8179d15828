"""Fits on several ranks: the factors of one process, whatever the number of ranks, and one error for all of them."""

import json
import os
import re
import signal
import time

import numpy as np
import pytest
from ranks import run_ranks, start_ranks
from scipy.sparse import csr_matrix

from wals_gpu import WALS, CheckpointError, DistributedError, Interactions, ModelFormatError, SingularSystemError
from wals_gpu._cpu import LIMITS
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.data.stored import write_stored
from wals_gpu.distributed import LocalGroup, fit_sharded, shard
from wals_gpu.distributed.cuts import cut_rows
from wals_gpu.distributed.session import ShardedTerms
from wals_gpu.distributed.tables import make_tables

pytest.importorskip("torch", reason="ranks need torch")

SHAPE = (5000, 3100)  # more blocks of rows than ranks on both sides, and no multiple of a block


def make_matrix(n=40_000, seed=0, dtype=np.float32, one_value=False):
    """Popular and rare items, users without entries at the end, one user and one item with very many."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.integers(0, SHAPE[0] - 30, n), np.full(2500, 4200), rng.integers(0, SHAPE[0] - 30, 3000)]
    )
    columns = np.concatenate(
        [(SHAPE[1] * rng.random(n) ** 2).astype(int), rng.choice(SHAPE[1], 2500, replace=False), np.full(3000, 1500)]
    )
    matrix = csr_matrix((np.ones(len(rows), dtype), (rows, columns)), SHAPE)
    matrix.data[:] = 1 if one_value else rng.integers(1, 6, matrix.nnz)
    return matrix


def make_model(**settings):
    return WALS(**{"factors": 32, "iterations": 3, "random_state": 7, "num_threads": 1, "init_scale": 1, **settings})


# The same in the programs of the ranks.
PROGRAM = "from test_sharded_fit import make_matrix, make_model\nfrom wals_gpu.distributed import fit_sharded\n"

# Factors move from basis to basis in all of them but "odd" and "odd subspace", whose rows fill no cache lines, and
# "many steps", which has no eigenvectors; the Gram matrix of the last two is made in blocks of columns.
CASES = {
    "odd": {"solver": "cholesky", "factors": 18},
    "odd subspace": {"solver": "subspace", "block_size": 16, "factors": 33},
    "cg": {"solver": "cg"},
    "exact": {"solver": "cholesky"},
    "subspace": {"solver": "subspace", "block_size": 16},
    "google": {"objective": "google_wals", "solver": "cg"},
    "eals": {"objective": "eals", "solver": "cholesky", "dtype": "float64"},
    "spark": {"objective": "spark"},
    "relaxed": {"over_relaxation": 1.3, "solver": "cg"},
    "many": {"solver": "cg", "factors": LIMITS.blocked_factors + 16, "iterations": 1},
    "many steps": {"solver": "subspace", "factors": LIMITS.rotated_subspace_factors + 16, "iterations": 1},
}


#: Of one ridge, and as many factors as are solved exactly without eigenvectors.
EXACT = {
    "objective": "hu",
    "solver": "cholesky",
    "factors": LIMITS.rotated_subspace_factors + 16,
    "iterations": 1,
}


@pytest.fixture(scope="module")
def expected():
    """A fit in one process, in memory, for each case."""
    return {
        name: make_model(**settings).fit(make_matrix(dtype=settings.get("dtype", "float32")))
        for name, settings in CASES.items()
    }


def assert_same(model, users, items, losses):
    np.testing.assert_array_equal(model.user_factors, users)
    np.testing.assert_array_equal(model.item_factors, items)
    np.testing.assert_allclose([record.loss for record in model.history_], losses, rtol=1e-12)


@pytest.mark.parametrize(
    ("budget", "share", "mode"),
    [(None, 1.0, "all"), (None, 0.5, "halo"), (3100, 1.0, "all"), (3000, 1.0, "blocks"), (1600, 0.5, "halo"),
     (700, 0.5, "blocks"), (50, 1.0, "blocks"), (1, 0.5, "blocks")],
)  # fmt: skip
def test_tables_are_chosen_by_what_is_met_and_what_fits(budget, share, mode):
    """`budget` in rows: no table has more, unless one row alone meets more."""
    matrix = make_matrix()[:, : int(share * SHAPE[1])]
    matrix.resize(SHAPE)
    data = shard(Interactions(matrix), LocalGroup(), 18, SolveOptions())
    own = ShardedTerms.of(data, data.bind(make_model().objective), "user").own
    tables = make_tables(LocalGroup(), data.item_cuts, own, "auto", 128, None if budget is None else budget * 128)
    assert tables.mode == mode
    rows = []
    for part, table in tables.rounds(np.zeros((SHAPE[1], 18), np.float32), lambda n: np.empty((n, 18), np.float32)):
        n_rows = part.rows.stop - part.rows.start
        assert budget is None or len(table) <= budget or n_rows == 1
        rows += range(part.rows.start, part.rows.stop)
    assert rows == list(range(SHAPE[0]))


@pytest.mark.parametrize("name", CASES)
def test_a_fit_of_stored_interactions_has_the_bits_of_one_in_memory(expected, name, tmp_path):
    settings = CASES[name]
    dtype = settings.get("dtype", "float32")
    stored = write_stored(tmp_path / "stored", make_matrix(dtype=dtype), dtype=dtype, block_bytes=1 << 18)
    model = make_model(**settings).fit(stored)
    assert_same(expected[name], model.user_factors, model.item_factors, [record.loss for record in model.history_])


@pytest.mark.parametrize("mode", ["all", "halo", "blocks"])
@pytest.mark.parametrize("name", CASES)
def test_one_rank_is_a_fit_in_memory(expected, name, mode):
    settings = CASES[name]
    matrix = make_matrix(dtype=settings.get("dtype", "float32"))
    model = fit_sharded(make_model(**settings), matrix, mode=mode)
    losses = [record.loss for record in model.history]
    assert_same(expected[name], model.local.user_factors, model.local.item_factors, losses)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_number_of_ranks_changes_no_bit(expected, tmp_path, size):
    program = (
        PROGRAM
        + f"""
for name, settings in {CASES!r}.items():
    modes = ("all", "halo", "blocks") if name in ("cg", "exact") else ("auto",)
    for mode in modes:
        matrix = make_matrix(dtype=settings.get("dtype", "float32"))
        model = fit_sharded(make_model(**settings), matrix, group, mode=mode)
        losses = [record.loss for record in model.history]
        np.savez(f"{{folder}}/{{name}}-{{mode}}-{{rank}}.npz", users=model.local.user_factors, losses=losses,
                 items=model.local.item_factors, first=model.users.start)
"""
    )
    run_ranks(program, size, tmp_path)
    files = sorted({path.name.rpartition("-")[0] for path in tmp_path.glob("*.npz")})
    assert len(files) == len(CASES) + 4
    all_losses = {}
    for name in files:
        parts = [np.load(tmp_path / f"{name}-{rank}.npz") for rank in range(size)]
        users = np.concatenate([part["users"] for part in parts])
        assert [int(part["first"]) for part in parts] == np.cumsum([0] + [len(p["users"]) for p in parts[:-1]]).tolist()
        for part in parts:
            assert_same(expected[name.partition("-")[0]], users, part["items"], part["losses"])
            np.testing.assert_array_equal(part["losses"], all_losses.setdefault(name.partition("-")[0], part["losses"]))


def test_ranks_without_rows_and_a_value_that_a_rank_alone_has(tmp_path):
    """Two blocks of rows for three ranks, and entries of one value everywhere but on the first rank; more than twice as
    many factors as items, whose spectrum is found without their Gram matrix; exact rows without eigenvectors."""
    program = (
        PROGRAM
        + f"""
matrix = make_matrix(n=5000, one_value=True)[:1500, :900]
matrix.data[:50] = 3
model = fit_sharded(make_model(objective="hu", alpha=4), matrix, group)
few = fit_sharded(make_model(solver="cg", factors=784, iterations=1), matrix[:600, :300], group)
exact = fit_sharded(make_model(**{EXACT!r}), matrix[:700, :600], group)
np.savez(f"{{folder}}/{{rank}}.npz", users=model.local.user_factors, items=model.local.item_factors,
         few=few.local.item_factors, exact=exact.local.item_factors)
"""
    )
    run_ranks(program, 3, tmp_path)
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(3)]
    assert min(len(part["users"]) for part in parts) == 0
    matrix = make_matrix(n=5000, one_value=True)[:1500, :900]
    matrix.data[:50] = 3
    model = make_model(objective="hu", alpha=4).fit(matrix)
    np.testing.assert_array_equal(np.concatenate([part["users"] for part in parts]), model.user_factors)
    np.testing.assert_array_equal(parts[2]["items"], model.item_factors)
    few = make_model(solver="cg", factors=784, iterations=1).fit(matrix[:600, :300])
    np.testing.assert_array_equal(parts[0]["few"], few.item_factors)
    for data in (matrix[:700, :600], write_stored(tmp_path / "stored", matrix[:700, :600], block_bytes=1 << 12)):
        exact = make_model(**EXACT).fit(data)
        np.testing.assert_array_equal(parts[0]["exact"], exact.item_factors)


def test_models_of_ranks_are_saved_in_parts_and_read_anywhere(tmp_path):
    program = (
        PROGRAM
        + """
from wals_gpu import Interactions
from wals_gpu.data.ids import Ids
import pyarrow as pa
names = Ids(pa.array([f"item {i:05}" for i in range(3100)]), "item")
data = Interactions(make_matrix(), Ids(np.arange(5000) * 3 + 1, "user"), names)
model = fit_sharded(make_model(solver="cg"), data, group, validation=0.1, metric="recall@5")
model.save(folder + "/model")
lists = list(model.recommend_chunks(4, chunk_size=700))
np.savez(f"{folder}/lists-{rank}.npz", users=np.concatenate([c.users for c in lists]),
         ids=np.concatenate([c.ids for c in lists]).astype("U"))
print(model.local.best_iteration_, model.local.validation_metric_, model.history[-1].validation)
"""
    )
    out = run_ranks(program, 3, tmp_path)
    assert len(set(out)) == 1
    model = WALS.load(tmp_path / "model")
    assert (model.n_users, model.n_items) == SHAPE and model.user_ids[4999] == 14998
    assert f"{model.best_iteration_} {model.validation_metric_} {model.history_[-1].validation}\n" == out[0]
    parts = [np.load(tmp_path / f"lists-{rank}.npz") for rank in range(3)]
    users = np.concatenate([part["users"] for part in parts])
    np.testing.assert_array_equal(users, model.user_ids.ids)
    answers = model.recommend(users, 4)
    np.testing.assert_array_equal(np.concatenate([part["ids"] for part in parts]), answers.ids.astype("U"))
    some = WALS.load(tmp_path / "model", users=slice(1000, 4990))
    assert some.n_users == 3990 and some.user_ids[0] == 3001
    np.testing.assert_array_equal(some.user_factors, model.user_factors[1000:4990])
    np.testing.assert_array_equal(some.recommend([3001, 9001], 4).ids, model.recommend([3001, 9001], 4).ids)
    assert (some.fitted.seen != model.fitted.seen[1000:4990]).nnz == 0
    model.save(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"users: the model in .* lies in one part"):
        WALS.load(tmp_path / "whole", users=slice(0, 5))
    with pytest.raises(ValueError, match=r"users must be a range of rows in \[0, 5000\)"):
        WALS.load(tmp_path / "model", users=slice(5000, 6000))
    (part,) = (tmp_path / "model").glob("users-1-*")
    os.rename(part, tmp_path / "elsewhere")
    with pytest.raises(ModelFormatError, match=r"users-1-[0-9a-f]{8} is missing"):
        WALS.load(tmp_path / "model")


def test_validation_is_that_of_one_process():
    """The best iteration, and the factors of it, with patience."""
    matrix = make_matrix()
    whole = make_model(iterations=8, solver="cg").fit(matrix, validation=0.2, patience=2, metric="ndcg@10")
    model = fit_sharded(make_model(iterations=8, solver="cg"), matrix, validation=0.2, patience=2, metric="ndcg@10")
    assert model.local.best_iteration_ == whole.best_iteration_
    np.testing.assert_allclose(
        [r.validation for r in model.history], [r.validation for r in whole.history_], rtol=1e-12
    )
    np.testing.assert_array_equal(model.local.user_factors, whole.user_factors)
    np.testing.assert_array_equal(model.local.item_factors, whole.item_factors)


RESUMED = (
    PROGRAM
    + """
from wals_gpu import DistributedError
def stop(record):
    if record.iteration == STOP:
        raise RuntimeError("the power is gone")
import os
try:
    model = fit_sharded(make_model(iterations=6, solver="cg"), make_matrix(), group, validation=0.1, patience=4,
                        checkpoint_dir=folder + "/checkpoint", resume=True, callback=stop if rank == size - 1 else None)
    np.savez(f"{folder}/{rank}.npz", users=model.local.user_factors, items=model.local.item_factors,
             losses=[r.loss for r in model.history], metric=[r.validation for r in model.history])
except DistributedError as error:
    print(error)
"""
)


def test_a_fit_goes_on_with_another_number_of_ranks(tmp_path):
    whole = fit_sharded(make_model(iterations=6, solver="cg"), make_matrix(), validation=0.1, patience=4)
    stops = (RESUMED.replace("STOP", n) for n in ("3", "5", "99"))
    for program, size in zip(stops, (3, 1, 2), strict=True):
        out = run_ranks(program, size, tmp_path)
        assert size == 2 or all("the power is gone" in text for text in out)
        assert len(list((tmp_path / "checkpoint").glob("step-*"))) == 1
    parts = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([part["users"] for part in parts]), whole.local.user_factors)
    np.testing.assert_array_equal(parts[0]["items"], whole.local.item_factors)
    assert [r.loss for r in whole.history] == parts[1]["losses"].tolist()
    assert [r.validation for r in whole.history] == parts[1]["metric"].tolist()


def test_checkpoints_of_other_fits_and_damaged_ones_are_refused(tmp_path):
    model, matrix, folder = make_model(iterations=2), make_matrix(n=3000), tmp_path / "c"
    fit_sharded(model, matrix, checkpoint_dir=folder)
    with pytest.raises(CheckpointError, match="holds a checkpoint, or a model"):
        fit_sharded(model, matrix, checkpoint_dir=folder)
    with pytest.raises(CheckpointError, match="other data"):
        fit_sharded(model, make_matrix(n=3000, seed=1), checkpoint_dir=folder, resume=True)
    with pytest.raises(CheckpointError, match="factors = 32 there, 20 here"):
        fit_sharded(make_model(factors=20), matrix, checkpoint_dir=folder, resume=True)
    with pytest.raises(CheckpointError, match=r"holds no checkpoint of WALS\.fit but a checkpoint of a fit on several"):
        make_model().fit(matrix, checkpoint_dir=folder, resume=True)
    os.rename(folder / "step-2" / "rows-0", tmp_path / "elsewhere")
    with pytest.raises(ModelFormatError, match="rows-0 is missing: rank 0 wrote rows 0 to 4999"):
        fit_sharded(model, matrix, checkpoint_dir=folder, resume=True)


KILLED = (
    PROGRAM
    + """
import os, time
from wals_gpu import DistributedError
def slowly(record):
    open(f"{folder}/at-{rank}-{record.iteration}", "w")
    time.sleep(0.2)
try:
    model = fit_sharded(make_model(iterations=40), make_matrix(), group, checkpoint_dir=folder + "/checkpoint",
                        resume=True, callback=slowly)
except DistributedError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
)


def test_a_rank_that_is_killed_ends_the_others(tmp_path):
    processes = start_ranks(KILLED, 2, tmp_path, timeout=20)
    while not (tmp_path / "at-1-3").exists():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    out, errors = processes[0].communicate(timeout=60)
    processes[1].communicate()
    assert json.loads(out)[0] == "DistributedError" and "rank 0 of 2 cannot reach the others" in out, errors
    # What is there is a whole checkpoint, of the iteration before or of this one.
    resumed = fit_sharded(make_model(iterations=5), make_matrix(), checkpoint_dir=tmp_path / "checkpoint", resume=True)
    whole = fit_sharded(make_model(iterations=5), make_matrix())
    np.testing.assert_array_equal(resumed.local.user_factors, whole.local.user_factors)


ERRORS = (
    PROGRAM
    + """
import json
import pyarrow as pa
from wals_gpu import Interactions, WALS
from wals_gpu.backends.solve import SolveOptions
from wals_gpu.data.ids import Ids
from wals_gpu.data.stored import StoredMatrix
from wals_gpu.distributed import LocalGroup, checkpoint, shard, start
matrix = make_matrix(n=3000)
held_out = (make_matrix(n=900, seed=5) > 4).astype(np.float32)
held_out = held_out - held_out.multiply(matrix > 0)
held_out.eliminate_zeros()
def attempt(name, call):
    try:
        call()
        print(json.dumps([name, None, None]))
    except Exception as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
def rank_1(good, bad):
    return bad if rank == 1 else good
singular = make_matrix(n=3000)
singular.data[:] = 1
attempt("settings", lambda: fit_sharded(make_model(factors=rank_1(32, 20)), matrix, group))
attempt("data", lambda: fit_sharded(make_model(), rank_1(matrix, make_matrix(n=2999)), group))
attempt("input", lambda: fit_sharded(make_model(), rank_1(matrix, "no such file.parquet"), group))
table = pa.table({"user_id": [1, 2, 3], "item_id": [1, 2, 2]})
attempt("column", lambda: fit_sharded(make_model(), table, group, user_column=rank_1("user_id", "who")))
attempt("type", lambda: fit_sharded(make_model(), rank_1(matrix, 3), group))
attempt("mode", lambda: fit_sharded(make_model(), matrix, group, mode=rank_1("all", "some")))
unridged = make_model(objective="explicit", regularization=0.0, solver="cholesky")
attempt("singular", lambda: fit_sharded(unridged, matrix, group))
from wals_gpu import Interactions
from wals_gpu.data.ids import Ids
named = Interactions(matrix, *(Ids(7 * np.arange(n), side) for n, side in zip(matrix.shape, ("user", "item"))))
attempt("named", lambda: fit_sharded(unridged, named, group))
attempt("disk", lambda: fit_sharded(make_model(), matrix, group, checkpoint_dir=rank_1(folder + "/c", "/proc/none")))
def fails(record):
    raise MemoryError("no room")
attempt("memory", lambda: fit_sharded(make_model(), matrix, group, callback=rank_1(None, fails)))
other = matrix.copy()
other.data[-1] += 1
attempt("value", lambda: fit_sharded(make_model(), rank_1(matrix, other), group))
def with_ids(first):
    return Interactions(matrix, Ids(np.arange(5000) + first, "user"), None)
attempt("ids", lambda: fit_sharded(make_model(), with_ids(rank_1(0, 1)), group))
attempt("validation", lambda: fit_sharded(make_model(), matrix, group, validation=rank_1(held_out, held_out * 2)))
attempt("stored", lambda: fit_sharded(make_model(), StoredMatrix(f"{folder}/{rank_1('one', 'two')}"), group))
of_one = shard(Interactions(matrix), LocalGroup(), 18, SolveOptions())
attempt("shards", lambda: fit_sharded(make_model(), of_one, group))
attempt("generator", lambda: fit_sharded(make_model(random_state=np.random.default_rng(rank)), matrix, group))
other_start = make_model(iterations=rank, random_state=1).fit(matrix)
attempt("start", lambda: fit_sharded(make_model(), matrix, group, warm_start=other_start))
other_start.save(f"{folder}/start-{rank}")
checkpoint.SEEN_WITHIN = start.SEEN_WITHIN = 0.2
attempt("starts", lambda: fit_sharded(make_model(), matrix, group, warm_start=f"{folder}/start-{rank}"))

# No memory, wherever a rank asks for much.
from unittest import mock
from wals_gpu.backends.cpu import CpuBackend
from wals_gpu.distributed import session, shards, tables, validation
places = [(CpuBackend, "empty_factors"), (CpuBackend, "rotated"), (CpuBackend, "move"), (CpuBackend, "gram_slabs"),
          (CpuBackend, "topk"), (CpuBackend, "solve_rotated"), (session, "one_each"), (shards, "fingerprint")]
half = make_matrix(n=3000, one_value=True)
half.data[:20] = 2
def fit_half():
    factors = 18 if name == "rotated" else 32
    fit_sharded(make_model(factors=factors), half, group, mode=mode, validation=held_out)
for where, name in places:
    for mode in ("all", "halo"):
        if rank == 1:
            calls, real = [], getattr(where, name)
            def fails(*args, **options):
                calls.append(1)
                if len(calls) == (2 if name == "topk" else 4) or name in ("one_each", "fingerprint"):
                    raise MemoryError("none left")
                return real(*args, **options)
            with mock.patch.object(where, name, fails):
                attempt("memory in " + name, fit_half)
        else:
            attempt("memory in " + name, fit_half)

# A disk that is full for one rank: the model and the checkpoint that were there are left as they were.
import resource
fitted = fit_sharded(make_model(), matrix, group)
fitted.save(folder + "/model")
fit_sharded(make_model(iterations=1), matrix, group, checkpoint_dir=folder + "/full")
changed = fit_sharded(make_model(iterations=1), matrix, group)
if rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
attempt("full while saving", lambda: changed.save(folder + "/model"))
attempt("full", lambda: fit_sharded(make_model(), matrix, group, checkpoint_dir=folder + "/full", resume=True))
group.barrier()
assert [name for name in os.listdir(folder + "/full") if name.startswith("step-")] == ["step-1"]
group.barrier()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
same = WALS.load(folder + "/model")
assert np.array_equal(same.user_factors[fitted.users], fitted.local.user_factors)
assert len(os.listdir(folder + "/model")) == 5
resumed = fit_sharded(make_model(), matrix, group, checkpoint_dir=folder + "/full", resume=True)
assert np.array_equal(resumed.local.user_factors, fitted.local.user_factors)
group.barrier()

# A folder that is another one on another machine.
elsewhere = rank_1(folder + "/here", folder + "/there")
attempt("not shared", lambda: fit_sharded(make_model(), matrix, group, checkpoint_dir=elsewhere))
attempt("not shared", lambda: fitted.save(elsewhere))

# Not an error: without a seed, ranks have the same one, and another each time.
sums = [float(fit_sharded(make_model(random_state=None), matrix, group).local.item_factors.sum()) for _ in range(2)]
assert sums[0] != sums[1]
print(json.dumps(["no seed", None, str(sums)]))
attempt("nothing", lambda: fit_sharded(make_model(), matrix, group))
"""
)


def test_an_error_of_one_rank_is_one_of_all(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        write_stored(tmp_path / name, make_matrix(n=3000, seed=seed)[:, :3000])
    out = run_ranks(ERRORS, 2, tmp_path)
    assert out[0] == out[1]
    said = [(name, (kind, text)) for name, kind, text in map(json.loads, out[0].splitlines())]
    errors = dict(said)
    assert errors.pop("nothing") == (None, None)
    for name in ("value", "ids", "stored", "validation", "generator", "start", "starts"):
        kind, text = errors[name]
        assert kind == "DistributedError" and text.startswith("all ranks must have the same data"), name
    assert errors["shards"][0] == "ValueError" and "the shards are of rank 0 of 1" in errors["shards"][1]
    memory = [(name, kind, text) for name, (kind, text) in said if name.startswith("memory in")]
    assert len(memory) == 16
    for name, kind, text in memory:
        assert kind == "MemoryError" and text.startswith("rank 1: ") and text.endswith("none left"), (name, text)
    for name in ("full", "full while saving"):
        assert errors[name][0] == "OSError" and "File too large" in errors[name][1], name
    for kind, text in (answer for name, answer in said if name == "not shared"):
        assert kind == "FileNotFoundError" and "the folder must be one that all ranks share" in text
    kind, text = errors["settings"]
    assert kind == "DistributedError" and "factors is 32 on rank 0, 20 on rank 1" in text
    kind, text = errors["data"]
    assert kind == "DistributedError" and text.startswith("all ranks must have the same data")
    assert errors["input"][0] == "FileNotFoundError" and "rank 1: reading the interactions" in errors["input"][1]
    assert "no such file.parquet" in errors["input"][1]
    assert errors["type"][0] in ("TypeError", "DataError") and "interactions must be" in errors["type"][1]
    kind, text = errors["mode"]
    assert kind == "ValueError" and "mode must be one of auto, all, halo, blocks; got 'some'" in text
    assert errors["column"][0] == "DataError" and "who" in errors["column"][1]
    assert errors["singular"][0] == "SingularSystemError" and "user" in errors["singular"][1]
    kind, text = errors["named"]
    row, name = map(int, re.search(r"of user (\d+) \(id (\d+)\)", text).groups())
    assert kind == "SingularSystemError" and name == 7 * row
    assert errors["disk"][0] == "FileNotFoundError" and "/proc/none" in errors["disk"][1]
    assert errors["memory"] == ("MemoryError", "rank 1: in the callback: no room")


def test_the_singular_row_is_named_by_its_number_among_all():
    matrix = make_matrix(n=3000)
    with pytest.raises(SingularSystemError) as alone:
        make_model(objective="explicit", regularization=0.0, solver="cholesky").fit(matrix)
    with pytest.raises(SingularSystemError) as sharded:
        fit_sharded(make_model(objective="explicit", regularization=0.0, solver="cholesky"), matrix)
    assert (alone.value.row, str(alone.value)) == (sharded.value.row, str(sharded.value))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"mode": "some"}, ValueError, "mode must be one of auto, all, halo, blocks; got 'some'"),
        ({"table_bytes": 0}, ValueError, "table_bytes must be"),
        ({"warm_start": 3}, TypeError, "warm_start must be True, False, a fitted WALS or the path of one, got 3"),
        ({"popularity_exponent": "auto"}, ValueError, 'popularity_exponent="auto" needs validation'),
        ({"patience": 2}, ValueError, "need validation"),
        ({"resume": True}, ValueError, "need checkpoint_dir"),
    ],
)
def test_bad_options_are_named(options, error, text):
    settings = {name: options.pop(name) for name in list(options) if name == "popularity_exponent"}
    with pytest.raises(error, match=text):
        fit_sharded(make_model(**settings), make_matrix(n=100), LocalGroup(), **options)


@pytest.mark.parametrize("n", [1, 2, 1024, 1025, 2049, 3000])
def test_no_rank_has_a_single_row_of_many(n):
    """It would have one coefficient where the whole has one for each row, and another last bit."""
    for size in (1, 2, 3, 5):
        cuts = cut_rows(np.ones(n, np.int64), size, 8, SolveOptions())
        assert sum(cuts.counts) == n and (n == 1 or 1 not in cuts.counts)


def test_interactions_keep_their_ids():
    names = Ids(np.arange(SHAPE[0]) * 2, "user"), Ids(np.arange(SHAPE[1]) * 5, "item")
    model = fit_sharded(make_model(), Interactions(make_matrix(n=3000), *names)).local
    assert model.user_ids.tolist() == names[0].tolist() and model.item_ids.tolist() == names[1].tolist()
    assert not (model.recommend([4], 30).ids % 5).any()


def test_groups_need_a_process_group():
    from wals_gpu.distributed import TorchGroup

    with pytest.raises(DistributedError, match="torchrun"):
        TorchGroup()


def test_a_damaged_file_of_a_checkpoint_or_model_is_named(tmp_path):
    """Each file cut short, with other bytes, empty, and gone: never a fit from wrong numbers, never another error."""
    model, matrix, folder = make_model(iterations=2, solver="cg"), make_matrix(n=3000), tmp_path / "c"
    options = {"validation": 0.1, "metric": "recall@5", "checkpoint_dir": folder}
    whole = fit_sharded(model, matrix, **options)
    whole.save(tmp_path / "model")

    def resume():
        return fit_sharded(model, matrix, resume=True, **options).local

    for place, call in ((folder, resume), (tmp_path / "model", lambda: WALS.load(tmp_path / "model"))):
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != "README.md")
        assert len(files) == 4
        for path in files:
            content = path.read_bytes()
            middle = len(content) // 2
            for bad in (content[:middle], content[:middle] + b"~" + content[middle + 1 :], b"", None):
                path.unlink()
                if bad is not None:
                    path.write_bytes(bad)
                if bad is None and path == folder / "model.json":
                    call()  # no checkpoint: a fit from its beginning
                    continue
                with pytest.raises(ModelFormatError, match=re.escape(str(place))):
                    call()
            if path != folder / "model.json":
                path.write_bytes(content)
        np.testing.assert_array_equal(call().user_factors, whole.local.user_factors)
