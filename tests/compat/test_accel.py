"""Programs written for implicit run on our ALS: in this process, as a script, as a module."""

import os
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import wals_gpu
from wals_gpu import accel, als

# implicit warns about threads of BLAS where its own class is made, RecTools about types.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def needs(package):
    return pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture
def implicit():
    """implicit as it is, and given back as it was."""
    needs("implicit")
    import implicit.evaluation

    yield implicit
    accel.uninstall()


@pytest.fixture
def installed(implicit):
    accel.install()
    return implicit


def clicks(users=60, items=40):
    """Two groups of users that like two groups of items."""
    rng = np.random.default_rng(0)
    same = np.add.outer(np.arange(users), np.arange(items)) % 2 == 0
    return csr_matrix((rng.random((users, items)) < np.where(same, 0.5, 0.03)).astype(np.float32))


def replaced(implicit):
    """What install() replaces, by name."""
    return {
        "function": implicit.als.AlternatingLeastSquares,
        "class": implicit.cpu.als.AlternatingLeastSquares,
        "loss": implicit.cpu.als.calculate_loss,
        "warning": implicit.utils.ParameterWarning,
        "error": implicit.recommender_base.ModelFitError,
        "split": implicit.evaluation.leave_k_out_split,
    }


def test_install_and_uninstall(implicit):
    before = replaced(implicit)
    accel.install()
    accel.install()
    during = replaced(implicit)
    assert during["class"] is als.CpuAlternatingLeastSquares and during["loss"] is als.calculate_loss
    assert during["warning"] is wals_gpu.ParameterWarning and during["error"] is wals_gpu.ModelFitError
    accel.uninstall()
    accel.uninstall()
    assert replaced(implicit) == before
    assert not set(before.values()) & set(during.values())


def test_what_the_function_makes(installed):
    make = installed.als.AlternatingLeastSquares
    model = make(20, 0.5, 2.0, np.float64, False, False, False, 7, True, 1, 3)  # in implicit's order, with use_gpu
    assert type(model) is installed.cpu.als.AlternatingLeastSquares
    want = als.CpuAlternatingLeastSquares(20, 0.5, 2.0, np.float64, False, False, 7, True, 1, 3)
    assert vars(model) == vars(want)
    assert vars(make()) == vars(als.CpuAlternatingLeastSquares())
    assert (make.__module__, make.__name__) == ("implicit.als", "AlternatingLeastSquares")
    with pytest.raises(TypeError, match="no_such_option"):
        make(no_such_option=1)


def test_a_gpu_stays_implicits(installed):
    if installed.gpu.HAS_CUDA:
        pytest.skip("implicit has a GPU here")
    with pytest.raises(ValueError, match="can't train on GPU"):
        installed.als.AlternatingLeastSquares(use_gpu=True)


def test_ours_counts_as_implicits(implicit):
    theirs = implicit.cpu.als.AlternatingLeastSquares
    accel.install()
    for model in (implicit.als.AlternatingLeastSquares(), als.AlternatingLeastSquares()):
        assert isinstance(model, theirs) and isinstance(model, implicit.cpu.als.AlternatingLeastSquares)
        assert isinstance(model, implicit.recommender_base.RecommenderBase)


def test_warnings_and_errors_are_caught_by_implicits_names(installed):
    model = installed.als.AlternatingLeastSquares(factors=4)
    with pytest.warns(installed.utils.ParameterWarning):
        model.fit(clicks().tocoo(), show_progress=False)
    with pytest.warns(installed.utils.ParameterWarning):  # from code of implicit's
        installed.utils.check_csr(clicks().tocoo())
    broken = clicks()
    broken.data[0] = np.nan
    with pytest.raises(installed.recommender_base.ModelFitError):
        installed.als.AlternatingLeastSquares(factors=4).fit(broken, show_progress=False)


def test_a_pickle_of_implicits_own_model_becomes_ours(implicit):
    theirs = implicit.cpu.als.AlternatingLeastSquares(factors=4, random_state=1)
    theirs.fit(clicks(), show_progress=False)
    data = pickle.dumps(theirs)
    accel.install()
    model = pickle.loads(data)
    assert type(model) is als.CpuAlternatingLeastSquares
    np.testing.assert_array_equal(model.recommend(0, clicks()[0])[0], theirs.recommend(0, clicks()[0])[0])


def test_implicits_evaluation(installed):
    from implicit.evaluation import precision_at_k, ranking_metrics_at_k, train_test_split

    train, test = train_test_split(clicks(), random_state=1)
    model = installed.als.AlternatingLeastSquares(factors=4, random_state=1)
    model.fit(train, show_progress=False)
    metrics = ranking_metrics_at_k(model, train, test, K=5, show_progress=False)
    # 0.336 and 0.605, whatever the instruction set and the BLAS; by chance the second is 0.5.
    assert metrics["precision"] > 0.3 and metrics["auc"] > 0.6
    assert precision_at_k(model, train, test, K=5, show_progress=False) == pytest.approx(metrics["precision"])
    everything = ranking_metrics_at_k(model, train, test, K=100, show_progress=False)  # more than there are items
    assert all(0 <= value <= 1 for value in everything.values())


def test_leave_k_out_split_honours_its_seed(installed):
    def split(seed):
        train, test = installed.evaluation.leave_k_out_split(clicks(), K=2, random_state=seed)
        assert abs(train + test - clicks()).nnz == 0 and (np.diff(test.tocsr().indptr) <= 2).all()
        return test.tocsr().indices.tolist()

    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert split(1) == split(1) == split(np.random.default_rng(1)) != split(2)
    assert split(np.random.RandomState(4)) == split(np.random.RandomState(4))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert split(None) != split(None)


@pytest.mark.parametrize("package, name, options", [
    ("annoy", "AnnoyAlternatingLeastSquares", {}),
    ("faiss", "FaissAlternatingLeastSquares", {"nlist": 2, "nprobe": 2}),
])  # fmt: skip
def test_implicits_approximate_search(installed, package, name, options):
    needs(package)
    data = clicks()
    approximate = getattr(installed.approximate_als, name)(factors=4, random_state=1, **options)
    approximate.fit(data, show_progress=False)
    exact = approximate.model
    assert type(exact) is als.CpuAlternatingLeastSquares
    factors = exact.item_factors.copy()
    for item in range(5):
        ids, scores = approximate.similar_items(item, N=5)
        want_ids, want_scores = exact.similar_items(item, N=5)
        assert len(set(ids) & set(want_ids)) >= 4
        assert scores[0] == pytest.approx(want_scores[0], abs=1e-3)
        ids, _ = approximate.recommend(item, data[item], N=5)
        assert len(set(ids) & set(exact.recommend(item, data[item], N=5)[0])) >= 4
    ids, _ = approximate.recommend([0, 1], data[[0, 1]], N=5, filter_items=[3])
    assert ids.shape == (2, 5) and 3 not in ids
    np.testing.assert_array_equal(exact.item_factors, factors)


@pytest.fixture
def dataset():
    needs("rectools")
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset

    data = clicks().tocoo()
    table = pd.DataFrame({Columns.User: data.row, Columns.Item: data.col})
    users = pd.DataFrame({"id": np.unique(data.row), "feature": "group", "value": np.unique(data.row) % 2})
    items = pd.DataFrame({"id": np.unique(data.col), "feature": "group", "value": np.unique(data.col) % 2})
    columns = {"cat_user_features": ["group"], "cat_item_features": ["group"]}
    table = table.assign(**{Columns.Weight: 1.0, Columns.Datetime: pd.Timestamp("2024-01-01")})
    return Dataset.construct(table, user_features_df=users, item_features_df=items, **columns)


@pytest.mark.parametrize("together", [False, True])
def test_rectools(implicit, dataset, together):
    """The wrapper was imported before: its names for implicit's classes are replaced too."""
    from rectools import Columns
    from rectools.models import ImplicitALSWrapperModel

    def run():
        inner = implicit.als.AlternatingLeastSquares(factors=4, alpha=3, use_cg=False, random_state=1, iterations=5)
        model = ImplicitALSWrapperModel(inner, fit_features_together=together)
        model.fit(dataset)
        users, items = model.get_vectors()
        found = model.recommend(dataset.user_id_map.external_ids, dataset, k=5, filter_viewed=True)
        return model, users @ items.T, found

    _, want_scores, want = run()
    accel.install()
    model, scores, found = run()
    assert type(model.model) is als.CpuAlternatingLeastSquares
    np.testing.assert_allclose(scores, want_scores, atol=2e-3)
    for user, part in found.groupby(Columns.User):
        assert len(set(part[Columns.Item]) & set(want[want[Columns.User] == user][Columns.Item])) >= 4
    config = model.get_config(simple_types=True)
    assert config["model"]["cls"] == "AlternatingLeastSquares"
    assert type(ImplicitALSWrapperModel.from_config(config)._model) is als.CpuAlternatingLeastSquares
    config["model"]["cls"] = "implicit.als.AlternatingLeastSquares"
    assert type(ImplicitALSWrapperModel.from_config(config)._model) is als.CpuAlternatingLeastSquares
    assert ImplicitALSWrapperModel.loads(model.dumps()).get_vectors()[0].shape == model.get_vectors()[0].shape
    model.fit_partial(dataset, epochs=1)
    ImplicitALSWrapperModel(als.AlternatingLeastSquares(factors=4)).fit(dataset)


def test_without_implicit(monkeypatch):
    accel.uninstall()
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(ImportError, match=r"takes the place of implicit's ALS"):
        accel.install()


def test_an_older_implicit_is_refused(implicit, monkeypatch):
    before = replaced(implicit)
    monkeypatch.setattr(implicit, "__version__", "0.6.2")
    with pytest.raises(ImportError, match=r"implicit 0\.7, but this is implicit 0\.6\.2"):
        accel.install()
    assert replaced(implicit) == before


# --- the command ---------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    from implicit.als import AlternatingLeastSquares
    import neighbour
    model = AlternatingLeastSquares(factors=3)
    print(__name__, type(model).__module__, neighbour.NAME, sys.argv[1:], sys.argv[0])
    import wals_gpu.accel
    wals_gpu.accel.uninstall()
    from implicit.als import AlternatingLeastSquares
    print(type(AlternatingLeastSquares()).__module__)
    sys.exit(7)
"""


def command(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(wals_gpu.__file__))}
    run = [sys.executable, "-W", "ignore", "-m", "wals_gpu.accel", *arguments]
    return subprocess.run(run, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "sub" / "neighbour.py").write_text("NAME = 'next to it'")
    return tmp_path


@pytest.mark.parametrize("way", ["script", "module"])
def test_a_program_runs_unchanged(folder, way):
    needs("implicit")
    if way == "script":
        done = command("sub/program.py", "-m", "--x", "1", cwd=folder)
        zeroth = "sub/program.py"
    else:
        done = command("-m", "program", "-m", "--x", "1", cwd=folder / "sub")
        zeroth = str(folder / "sub" / "program.py")
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines() == [
        f"__main__ wals_gpu.als next to it ['-m', '--x', '1'] {zeroth}",
        "implicit.cpu.als",
    ]


@pytest.mark.parametrize("arguments, status, message", [
    ([], 2, "usage: "),
    (["-m"], 2, "usage: "),
    (["--unknown"], 2, "usage: "),
    (["no_such_file.py"], 2, "can't open file 'no_such_file.py'"),
    (["--help"], 0, "usage: "),
])  # fmt: skip
def test_nothing_to_run(tmp_path, arguments, status, message):
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == status and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_importing_it_changes_nothing(tmp_path):
    code = "import sys, wals_gpu, wals_gpu.accel; assert 'implicit' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_ours_do_not_warn_of_blas_threads(installed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        installed.als.AlternatingLeastSquares().fit(clicks(), show_progress=False)
