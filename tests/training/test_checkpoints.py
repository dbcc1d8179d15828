"""A resumed fit is the fit that was never interrupted; a checkpoint is whole whatever ends the process."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from checkpointing import Stop, interrupt_at, make_likes, make_model, same_course
from scipy.sparse import csr_matrix

from wals_gpu import WALS, CheckpointError, ModelFormatError, as_interactions, cli
from wals_gpu.data.files import load_folder, remove_folder
from wals_gpu.training import checkpoints

# Resuming


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factors", [5, 16, 80])  # of 16 and 80, both sides are rotated while the fit lasts
@pytest.mark.parametrize("solver", ["auto", "cholesky", "cg", "subspace"])
def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path, solver, factors, dtype):
    likes, options = make_likes(), {"solver": solver, "factors": factors, "dtype": dtype, "block_size": 16}
    whole = make_model(**options).fit(likes)
    for stop in ([1], [4, 5], [9]):
        folder = tmp_path / str(stop)
        for at in stop:
            with pytest.raises(Stop):
                make_model(**options).fit(likes, checkpoint_dir=folder, resume=True, callback=interrupt_at(at))
        resumed = make_model(**options).fit(likes, checkpoint_dir=folder, resume=True)
        assert same_course(resumed, whole)
    again = make_model(**options).fit(likes, checkpoint_dir=folder, resume=True)  # nothing is left to do
    assert same_course(again, whole)


@pytest.mark.parametrize("objective", ["implicit", "ials", "google_wals", "eals", "spark", "explicit"])
def test_every_objective_resumes(tmp_path, objective):
    params = {"row_weights": np.arange(1.0, 71), "exponent": 0.5} if objective == "google_wals" else {}
    make = lambda: WALS(16, objective, iterations=6, **params)  # noqa: E731
    with pytest.raises(Stop):
        make().fit(make_likes(), checkpoint_dir=tmp_path, callback=interrupt_at(4))
    assert same_course(make().fit(make_likes(), checkpoint_dir=tmp_path, resume=True), make().fit(make_likes()))


def test_iterations_since_the_last_checkpoint_are_done_again(tmp_path):
    done = []

    def callback(model, record):
        done.append(record.iteration)
        if len(done) == 5:
            raise Stop

    with pytest.raises(Stop):
        make_model().fit(make_likes(), checkpoint_dir=tmp_path, checkpoint_every=3, callback=callback)
    resumed = make_model().fit(
        make_likes(), checkpoint_dir=tmp_path, checkpoint_every=3, resume=True, callback=callback
    )
    assert done == [1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9]
    assert same_course(resumed, make_model().fit(make_likes()))


def test_there_is_a_checkpoint_at_the_start_and_one_at_the_end(tmp_path):
    with pytest.raises(Stop):
        make_model(random_state=None).fit(
            make_likes(), checkpoint_dir=tmp_path / "a", checkpoint_every=5, callback=interrupt_at(1)
        )
    assert load_folder(tmp_path / "a")[1]["history"] == []
    for end in (None, lambda model, record: record.iteration == 4):
        make_model().fit(make_likes(), checkpoint_dir=tmp_path / "b", checkpoint_every=5, callback=end)
        assert len(load_folder(tmp_path / "b")[1]["history"]) == (9 if end is None else 4)
        remove_folder(tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_more_iterations_and_other_threads_are_no_other_fit(tmp_path):
    make_model(iterations=4, num_threads=1).fit(make_likes(), checkpoint_dir=tmp_path)
    longer = make_model(iterations=11, num_threads=3).fit(make_likes(), checkpoint_dir=tmp_path, resume=True)
    assert same_course(longer, make_model(iterations=11).fit(make_likes()))
    with pytest.raises(CheckpointError, match="has 11 iterations behind it, more than 10"):
        make_model(iterations=10).fit(make_likes(), checkpoint_dir=tmp_path, resume=True)


def test_a_warm_start_resumes_from_the_checkpoint(tmp_path):
    first = make_model(iterations=2).fit(make_likes())
    whole = make_model(iterations=2).fit(make_likes())
    whole.iterations = first.iterations = 6
    whole.fit(make_likes(), warm_start=True)
    with pytest.raises(Stop):
        first.fit(make_likes(), warm_start=True, checkpoint_dir=tmp_path, callback=interrupt_at(3))
    assert same_course(first.fit(make_likes(), warm_start=True, checkpoint_dir=tmp_path, resume=True), whole)


def validated(**params):
    """A fit whose best iteration is neither its first nor its last."""
    likes = make_likes(2)
    return make_model(init_scale=1.0, iterations=12, **params), likes, {"validation": 0.2, "metric": "recall@5"}


@pytest.mark.parametrize("factors", [5, 16])
def test_validation_resumes_with_its_best_and_its_patience(tmp_path, factors):
    model, likes, options = validated(factors=factors)
    whole = model.fit(likes, **options)
    best = whole.best_iteration_
    assert 1 < best < 11, "the test wants a best in the middle"
    for at in (1, best, best + 1, 12):
        folder = tmp_path / str(at)
        with pytest.raises(Stop):
            validated(factors=factors)[0].fit(likes, **options, checkpoint_dir=folder, callback=interrupt_at(at))
        assert same_course(
            validated(factors=factors)[0].fit(likes, **options, checkpoint_dir=folder, resume=True), whole
        )
    for patience in (1, 3):
        options["patience"] = patience
        stopped = validated(factors=factors)[0].fit(likes, **options)
        folder = tmp_path / f"patience {patience}"
        with pytest.raises(Stop):
            validated(factors=factors)[0].fit(
                likes, **options, checkpoint_dir=folder, callback=interrupt_at(len(stopped.history_) - 1)
            )
        for _ in range(2):  # the second time, patience has run out before anything is done
            resumed = validated(factors=factors)[0].fit(likes, **options, checkpoint_dir=folder, resume=True)
            assert same_course(resumed, stopped)


# What is refused


def test_a_checkpoint_is_not_overwritten_unasked(tmp_path):
    make_model(iterations=2).fit(make_likes(), checkpoint_dir=tmp_path)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    model = make_model(iterations=1).fit(make_likes())
    factors = model.user_factors
    with pytest.raises(CheckpointError, match="holds a checkpoint, or a model"):
        model.fit(make_likes(), checkpoint_dir=tmp_path)
    assert model.user_factors is factors
    model.save(tmp_path / "model")
    for resume, text in ((False, "holds a checkpoint, or a model"), (True, "holds no checkpoint but a WALS model")):
        with pytest.raises(CheckpointError, match=text):
            model.fit(make_likes(), checkpoint_dir=tmp_path / "model", resume=resume)
    WALS.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.iterdir())


def test_a_checkpoint_is_no_model(tmp_path):
    make_model(iterations=2).fit(make_likes(), checkpoint_dir=tmp_path)
    with pytest.raises(ModelFormatError, match="holds a checkpoint of a fit"):
        WALS.load(tmp_path)


def test_other_data_or_settings_are_refused_by_name(tmp_path):
    likes = make_likes()
    make_model(iterations=2).fit(likes, checkpoint_dir=tmp_path)

    flipped = likes.copy()
    flipped.data[-1] += 1
    table = pd.DataFrame({"user": likes.tocoo().row, "item": likes.tocoo().col, "value": likes.data})
    for params, data, text in (
        ({"factors": 17}, likes, "factors = 16 there, 17 here"),
        ({"alpha": 6}, likes, "hu alpha = 5.0 there, 6.0 here"),
        ({"regularization": 9}, likes, "hu regularization = 10.0 there, 9.0 here"),
        ({"solver": "cg"}, likes, "solver = 'cholesky' there, 'cg' here"),
        ({"cg_steps": 5}, likes, "cg_steps = 3 there, 5 here"),
        ({"block_size": 32}, likes, "block_size = 64 there, 32 here"),
        ({"dtype": "float64"}, likes, "dtype = 'float32' there, 'float64' here"),
        ({"random_state": 1}, likes, "random_state = 0 there, 1 here"),
        ({"init_scale": 0.2}, likes, "init_scale = 0.1 there, 0.2 here"),
        ({"compute_loss": False}, likes, "compute_loss = True there, False here"),
        ({}, flipped, "another fit: other data. Resume"),
        ({}, make_likes(1), "another fit: other data. Resume"),
        ({}, csr_matrix((likes.data, likes.indices, likes.indptr), shape=(70, 41)), "other data"),
        ({}, as_interactions(table), "other data"),
    ):
        with pytest.raises(CheckpointError, match=text):
            make_model(**params).fit(data, checkpoint_dir=tmp_path, resume=True)
    other = make_likes(1)
    other = other - other.multiply(likes > 0)
    with pytest.raises(CheckpointError, match=r"metric = None there, 'ndcg@10' here.*validation data = None there"):
        make_model().fit(likes, checkpoint_dir=tmp_path, resume=True, validation=other)
    with pytest.raises(CheckpointError, match="warm_start = False there, True here"):
        make_model().fit(likes, checkpoint_dir=tmp_path, resume=True, warm_start=True)
    assert same_course(make_model().fit(likes, checkpoint_dir=tmp_path, resume=True), make_model().fit(likes))


def test_weights_of_an_objective_are_settings(tmp_path):
    weights = np.arange(1.0, 41)
    WALS(4, "google_wals", column_weights=weights, iterations=1).fit(make_likes(), checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="other google_wals column_weights"):
        WALS(4, "google_wals", column_weights=weights + 1, iterations=1).fit(
            make_likes(), checkpoint_dir=tmp_path, resume=True
        )


def test_the_fingerprint_is_of_content():
    likes = make_likes()
    wide = csr_matrix(likes, copy=True)
    wide.indptr, wide.indices = wide.indptr.astype(np.int64), wide.indices.astype(np.int64)
    print_of = checkpoints.fingerprint
    assert print_of(likes) == print_of(wide)
    moved = likes.copy()
    moved.indptr[1] += 1
    assert len({print_of(likes), print_of(moved), print_of(likes * 2), print_of(likes.astype(np.float64))}) == 4
    strings, others = (as_interactions(pd.DataFrame({"user": ["ab", c], "item": [1, 2]})) for c in ("c", "d"))
    assert print_of(strings.matrix, strings.user_ids) != print_of(others.matrix, others.user_ids)
    assert print_of(strings.matrix, strings.user_ids) != print_of(strings.matrix, None)


def test_bad_arguments_are_named(tmp_path):
    for options, error, text in (
        ({"resume": True}, ValueError, "need checkpoint_dir"),
        ({"checkpoint_every": 2}, ValueError, "need checkpoint_dir"),
        ({"checkpoint_dir": tmp_path, "checkpoint_every": 0}, ValueError, "checkpoint_every must be an integer >= 1"),
        ({"checkpoint_dir": tmp_path, "checkpoint_every": 1.0}, TypeError, "checkpoint_every"),
    ):
        with pytest.raises(error, match=text):
            make_model().fit(make_likes(), **options)
    for state in (None, np.random.default_rng(0)):
        with pytest.raises(ValueError, match="needs an integer as random_state"):
            make_model(random_state=state).fit(make_likes(), checkpoint_dir=tmp_path, validation=0.1)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoint after iteration 0 could not be written"):
        make_model().fit(make_likes(), checkpoint_dir=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    make_model(iterations=2).fit(make_likes(), checkpoint_dir=tmp_path)
    (tensors,) = tmp_path.glob("*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ModelFormatError, match="damaged"):
        make_model().fit(make_likes(), checkpoint_dir=tmp_path, resume=True)


# Faults

FIT = """
import sys, numpy as np
sys.path = {paths!r}
from checkpointing import make_likes, make_model
model = make_model(iterations={iterations}, factors={factors}, solver={solver!r})
print("fit", flush=True)
model.fit(make_likes(), checkpoint_dir={folder!r}, resume=True{options})
"""


def start(folder, *, iterations=9, factors=16, solver="cg", options=""):
    code = FIT.format(
        paths=sys.path,
        folder=str(folder),
        iterations=iterations,
        factors=factors,
        solver=solver,
        options=options,
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("solver", ["cholesky", "cg", "subspace"])
def test_kill_at_random_moments(tmp_path, solver):
    rng = np.random.default_rng(int(os.environ.get("WALS_KILL_SEED", "0")))
    kills, iterations, reached = int(os.environ.get("WALS_KILLS", "4")), 400, 0
    for _ in range(kills):
        process = start(tmp_path, iterations=10**6, solver=solver)
        assert process.stdout.readline() == "fit\n"
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        if (tmp_path / "model.json").exists():  # whole, and never older than before
            history = load_folder(tmp_path)[1]["history"]
            assert len(history) >= reached
            reached = len(history)
        else:
            assert not reached
    iterations = reached + 3
    options = {"iterations": iterations, "solver": solver}
    resumed = make_model(**options).fit(make_likes(), checkpoint_dir=tmp_path, resume=True)
    assert same_course(resumed, make_model(**options).fit(make_likes()))
    assert len(list(tmp_path.iterdir())) == 2, "nothing of a killed save is left"


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    """A limit on file size stops the write in the middle, as a full disk does."""
    likes, options = make_likes(shape=(2000, 40)), {"factors": 64, "iterations": 5}
    with pytest.raises(Stop):
        make_model(**options).fit(likes, checkpoint_dir=tmp_path, callback=interrupt_at(3))
    code = f"""
import resource, sys
sys.path = {sys.path!r}
from checkpointing import make_likes, make_model
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
model = make_model(**{options!r})
try:
    model.fit(make_likes(shape=(2000, 40)), checkpoint_dir={str(tmp_path)!r}, resume=True)
except OSError as error:
    assert error.errno == {errno.EFBIG}, error
    print(error)
    assert len(model.history_) == 3 and model.user_factors.any()  # what was reached can be used
    assert model.recommend(0)[0].shape == (10,)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "checkpoint after iteration 3 could not be written" in done.stdout
    assert "earlier checkpoint in it is whole" in done.stdout
    assert len(load_folder(tmp_path)[1]["history"]) == 2 and len(list(tmp_path.iterdir())) == 2
    resumed = make_model(**options).fit(likes, checkpoint_dir=tmp_path, resume=True)
    assert same_course(resumed, make_model(**options).fit(likes))


# The command line


@pytest.fixture
def plays(tmp_path):
    coo = make_likes().tocoo()
    table = pd.DataFrame({"who": [f"p{r:02}" for r in coo.row], "what": coo.col, "value": coo.data})
    path = tmp_path / "plays.parquet"
    table.to_parquet(path)
    return path


def run(plays, out, *options):
    columns = ["--user-column", "who", "--item-column", "what"]
    common = ["--factors", "16", "--objective", "hu", "--set", "alpha=5", "--iterations", "9", "--quiet", *columns]
    return cli.main(["fit", str(plays), "--out", str(out), *common, *map(str, options)])


def test_the_command_resumes_by_itself(plays, tmp_path, capsys, monkeypatch):
    folder, fit = tmp_path / "unfinished", WALS.fit
    options = ["--checkpoint-dir", folder, "--checkpoint-every", 2, "--resume"]
    assert run(plays, tmp_path / "whole") == 0

    def crash(self, data, *, callback, **rest):
        return fit(self, data, callback=interrupt_at(5), **rest)

    monkeypatch.setattr(WALS, "fit", crash)
    with pytest.raises(Stop):
        run(plays, tmp_path / "out", *options)
    assert len(load_folder(folder)[1]["history"]) == 4
    monkeypatch.undo()
    capsys.readouterr()
    assert run(plays, tmp_path / "out", "--checkpoint-dir", folder) == 2
    assert "holds a checkpoint, or a model: go on from a checkpoint" in capsys.readouterr().err
    assert run(plays, tmp_path / "out", *options, "--seed", 3) == 2
    assert "--seed = 0 there, 3 here" in capsys.readouterr().err
    assert run(plays, tmp_path / "out", *options) == 0
    assert same_course(WALS.load(tmp_path / "out"), WALS.load(tmp_path / "whole"))
    assert not folder.exists(), "it has served its purpose"
    assert run(plays, tmp_path / "out", *options) == 0  # the next day's fit begins anew


def test_the_command_keeps_the_checkpoint_after_ctrl_c(plays, tmp_path, capsys, monkeypatch):
    folder, fit = tmp_path / "unfinished", WALS.fit

    def interrupt(times):
        def interrupted(self, data, *, callback, **rest):
            def wrapped(model, record):
                if record.iteration == 3:
                    for _ in range(times):
                        signal.raise_signal(signal.SIGINT)
                return callback(model, record)

            return fit(self, data, callback=wrapped, **rest)

        monkeypatch.setattr(WALS, "fit", interrupted)

    for times in (1, 2):
        interrupt(times)
        out = tmp_path / f"out {times}"
        options = ["--checkpoint-dir", folder, "--resume"]
        assert run(plays, out, *options) == 130
        assert ("but the checkpoint in" in capsys.readouterr().err) == (times == 2) != out.exists()
        monkeypatch.undo()
        assert run(plays, out, *options) == 0
        assert len(WALS.load(out).history_) == 9 and not folder.exists()


def test_the_command_does_not_mix_model_and_checkpoint(plays, tmp_path, capsys):
    assert run(plays, tmp_path / "out", "--checkpoint-dir", tmp_path / "x" / ".." / "out") == 2
    assert "must be different folders" in capsys.readouterr().err
    assert run(plays, tmp_path / "out", "--resume") == 2
    assert "--resume needs --checkpoint-dir" in capsys.readouterr().err
