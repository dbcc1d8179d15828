"""Where commands compute: --device and --threads."""

import json
import os

import numpy as np
import pytest
from commands import QUICK, command_parsers

from wals_gpu import cuda_status
from wals_gpu.cli import demo_links, demo_texts
from wals_gpu.model.wals import WALS

pytest_plugins = ["cli_fixtures"]

COMPUTING = ["fit", "recommend", "similar", "evaluate", "demo"]


def arguments_of(command, plays, model, out):
    return {
        "fit": ["fit", plays, "--out", out, *QUICK],
        "recommend": ["recommend", model, "p03", "p04", "-k", 5],
        "similar": ["similar", model, "s04", "s01", "-k", 5],
        "evaluate": ["evaluate", plays, "-k", 3, *QUICK],
        "demo": ["demo"],
    }[command]


def test_all_that_compute_have_the_same_options():
    parsers = command_parsers()
    for option in ("--device", "--threads"):
        actions = [next(a for a in parsers[name]._actions if option in a.option_strings) for name in COMPUTING]
        assert len({(a.dest, a.type, a.default, a.metavar, a.help) for a in actions}) == 1
    for name in COMPUTING:
        text = " ".join(parsers[name].format_help().split())
        assert "--device {auto,cpu,cuda}" in text
        assert "cuda: the current CUDA device, in float32; cuda:1: that one; auto (default): CUDA for large" in text


@pytest.mark.parametrize("command", ["fit", "recommend", "similar", "evaluate"])
def test_device_and_threads_reach_the_model_and_change_no_result(run, plays, model, tmp_path, monkeypatch, command):
    made = []
    make = WALS.__init__

    def recording(self, *arguments, **options):
        made.append(options)
        make(self, *arguments, **options)

    monkeypatch.setattr(WALS, "__init__", recording)
    results = []
    for number, (device, threads) in enumerate([("auto", 1), ("cpu", 2), ("auto", 2), ("cpu", 1)]):
        out = tmp_path / f"model{number}"
        words = [*arguments_of(command, plays, model, out), "--json", "--device", device, "--threads", threads]
        status, text, _ = run(*words)
        assert status == 0
        assert (made[-1]["device"], made[-1]["num_threads"]) == (device, threads)
        if command == "fit":
            saved = WALS.load(out)
            results.append((saved.user_factors.tolist(), saved.item_factors.tolist()))
        else:
            results.append(without_times(json.loads(text)))
    assert results[1:] == results[:-1]


def without_times(said):
    return {name: said[name] for name in said if "seconds" not in name} if isinstance(said, dict) else said


def test_device_and_threads_reach_both_parts_of_the_demo(run, monkeypatch):
    seen = []

    class Enough(Exception):
        pass

    def stop(*_, **options):
        seen.append(options)
        raise Enough

    monkeypatch.setattr(demo_texts, "WALS", stop)
    monkeypatch.setattr(demo_links, "WALS", stop)
    with pytest.raises(Enough):
        run("demo", "--device", "cpu", "--threads", 2, "--quiet")
    with pytest.raises(Enough):
        demo_texts.run_text_demo(lambda texts: np.ones((len(texts), 2)), device="cpu", num_threads=2)
    assert [(options["device"], options["num_threads"]) for options in seen] == [("cpu", 2)] * 2


NO_FILES = {
    "fit": ["fit", "nowhere.csv", "--out", "m"],
    "fit with texts": ["fit", "nowhere.csv", "--out", "m", "--items", "none.csv", "--encoder", "none"],
    "recommend": ["recommend", "nomodel", "p00"],
    "recommend for a text": ["recommend", "nomodel", "--text", "blue"],
    "similar": ["similar", "nomodel", "s00"],
    "evaluate": ["evaluate", "nowhere.csv"],
    "demo": ["demo"],
}


@pytest.mark.parametrize("words", NO_FILES.values(), ids=NO_FILES)
def test_a_device_that_cannot_be_used_is_refused_before_any_work(run, tmp_path, monkeypatch, words):
    """Before a file is missed, let alone read."""
    monkeypatch.chdir(tmp_path)
    available, why = cuda_status()
    refused = [
        (["--threads", "-1"], "--threads must be an integer >= 0, got -1"),
    ]
    if not available:
        refused.append((["--device", "cuda"], f"--device cuda: {why}"))
    for options, message in refused:
        assert run(*words, *options) == (2, "", f"wals-gpu: error: {message}\n")
    status, text, said = run(*words, "--device", "gpu")
    assert (status, text) == (2, "") and said.count("\n") == 1
    assert said.startswith(
        "wals-gpu: error: --device must be one of auto, cpu, cuda, got 'gpu'; did you mean 'cuda'? (try: wals-gpu "
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["fit", "fit with texts", "evaluate"])
def test_a_model_that_the_device_cannot_fit_is_refused_before_any_work(run, tmp_path, monkeypatch, command):
    class Narrow:
        def check(self, *, factors=None, dtype=None, k=None):
            if factors is not None:
                raise ValueError(f"no {dtype} of {factors} factors here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wals_gpu.cli.options.make_backend", lambda device, threads: Narrow())
    words = [*NO_FILES[command], "--device", "cuda", "--dtype", "float64", "--factors", "8"]
    assert run(*words) == (2, "", "wals-gpu: error: no float64 of 8 factors here\n")


@pytest.mark.parametrize("command", ["recommend", "similar", "evaluate"])
def test_more_results_than_the_device_finds_are_refused_before_any_work(run, tmp_path, monkeypatch, command):
    class Short:
        def check(self, *, factors=None, dtype=None, k=None):
            if k is not None and k > 5:
                raise ValueError(f"no {k} here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wals_gpu.cli.options.make_backend", lambda device, threads: Short())
    words = [*NO_FILES[command], "--device", "cpu", "-k", "6"]
    assert run(*words) == (2, "", "wals-gpu: error: no 6 here\n")
    for on_host in {"recommend": (["--allow", "l"], ["--explore", "ucb"]), "evaluate": (["--negatives", "9"],)}.get(
        command, ()
    ):
        assert "no 6 here" not in run(*words, *on_host)[2]


@pytest.mark.skipif(not cuda_status()[0], reason="no CUDA device can be used")
def test_commands_on_the_device(run, plays, model, tmp_path):
    """What a CUDA device answers is what the CPU answers, to float32 accuracy."""
    assert run(*arguments_of("fit", plays, model, tmp_path / "m"), "--device", "cuda")[0] == 0
    saved, expected = WALS.load(tmp_path / "m"), WALS.load(model)
    np.testing.assert_allclose(
        saved.user_factors @ saved.item_factors.T, expected.user_factors @ expected.item_factors.T, atol=1e-4
    )
    for command, items in (("recommend", "items"), ("similar", "similar")):
        words = [*arguments_of(command, plays, model, None), "--json"]
        on_device, on_cpu = (json.loads(run(*words, "--device", device)[1]) for device in ("cuda", "cpu"))
        for ours, theirs in zip(on_device, on_cpu, strict=True):
            scores = [[pair["score"] for pair in each[items]] for each in (ours, theirs)]
            np.testing.assert_allclose(*scores, atol=1e-5)
    assert run(*arguments_of("evaluate", plays, model, None), "--device", "cuda")[0] == 0
