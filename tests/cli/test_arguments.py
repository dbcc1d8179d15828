"""How the command line is read: any order of options and names, mistakes answered with what was meant, completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from commands import QUICK, command_parsers

from wals_gpu.checks import did_you_mean
from wals_gpu.cli import completion, recommend
from wals_gpu.cli.entry import make_parser
from wals_gpu.model.wals import WALS
from wals_gpu.objective.presets import make_objective

pytest_plugins = ["cli_fixtures"]

# --------------------------------------------------------------------------------------------- options between names


@pytest.mark.parametrize(
    "order",
    [
        "recommend MODEL -k 2 p03 p01",
        "recommend -k 2 MODEL p03 p01",
        "recommend MODEL p03 -k 2 p01",
        "recommend -k2 MODEL p03 --quiet p01",
        "recommend --json MODEL -k=2 p03 -- p01",
        "recommend MODEL --inc p03 -k 2 p01",
    ],
)
def test_options_stand_anywhere(order):
    """Also before, between and after names, shortened or not."""
    args = make_parser().parse_args(order.split())
    assert (str(args.model), args.users, args.k) == ("MODEL", ["p03", "p01"], 2)
    assert args.quiet == ("--quiet" in order) and args.include_seen == ("--inc" in order)


def test_options_stand_anywhere_for_people(run, model):
    expected = run("recommend", model, "p03", "p01", "-k", 2)
    assert expected[0] == 0
    assert run("recommend", model, "-k", 2, "p03", "--quiet", "p01") == expected
    assert run("similar", "-k", 1, model, "s01") == run("similar", model, "s01", "-k", 1)


def test_a_list_of_numbers_ends_where_names_begin():
    args = make_parser().parse_args(["evaluate", "-k", "10", "50", "plays.csv", "--factors", "8"])
    assert (args.k, args.interactions, args.factors) == ([10, 50], ["plays.csv"], 8)
    args = make_parser().parse_args(["evaluate", "plays.csv", "-k", "10"])
    assert (args.k, args.interactions) == ([10], ["plays.csv"])


def test_values_that_look_like_options_and_options_that_look_like_values():
    parse = make_parser().parse_args
    assert parse(["recommend", "m", "--users-file", "-"]).users_file == "-"
    assert parse(["recommend", "m", "--text", "-5 degrees, and falling"]).text == "-5 degrees, and falling"
    assert parse(["recommend", "m", "--text=--all"]).text == "--all"
    assert parse(["recommend", "m", "--", "-k", "--all"]).users == ["-k", "--all"]
    assert parse(["recommend", "m", "-5", "-0.5", ""]).users == ["-5", "-0.5", ""]
    assert parse(["fit", "a b.csv", "--out", "m m"]).interactions == ["a b.csv"]


def test_ids_below_zero_and_ids_with_a_dash(run, tmp_path):
    table = pa.table({"user": [-5, -5, 7, 7], "item": ["-k", "b", "b", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "plays.parquet")
    assert run("fit", tmp_path / "plays.parquet", "--out", tmp_path / "m", *QUICK)[0] == 0
    ids, scores = WALS.load(tmp_path / "m").recommend(-5, 1)
    for words in (["-5", "-k", "1"], ["-k", "1", "-5"], ["-k", "1", "--", "-5"]):
        text = run("recommend", tmp_path / "m", *words)[1]
        assert text.splitlines()[-1].split() == ["-5", "1", ids[0], f"{scores[0]:.4f}"]
    assert run("similar", tmp_path / "m", "-k", "1", "--", "-k")[1].splitlines()[-1].split()[0] == "-k"
    assert run("recommend", tmp_path / "m", "99999999999999999999")[2].startswith("wals-gpu: error: unknown user id: 9")


def test_factors_can_be_saved_in_halves(run, tmp_path):
    table = pa.table({"user": ["ann", "ann", "bob", "bob"], "item": ["a", "b", "b", "c"]})
    pyarrow.parquet.write_table(table, tmp_path / "plays.parquet")
    fit = ("fit", tmp_path / "plays.parquet", *QUICK)
    assert run(*fit, "--out", tmp_path / "whole")[0] == 0
    assert run(*fit, "--out", tmp_path / "halves", "--save-dtype", "float16")[0] == 0
    whole, halves = (WALS.load(tmp_path / name) for name in ("whole", "halves"))
    assert halves.user_factors.dtype == np.float32 and not np.array_equal(whole.user_factors, halves.user_factors)
    assert np.allclose(whole.user_factors, halves.user_factors, rtol=2**-11, atol=1e-6)
    assert run("recommend", tmp_path / "halves", "ann", "-k", "1")[0] == 0
    assert "--save-dtype" in run(*fit, "--out", tmp_path / "other", "--save-dtype", "bfloat16")[2]
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("recomend MODEL p00", "there is no command 'recomend'; did you mean 'recommend'? (try: wals-gpu --help)"),
        ("--quiet fit x", "a command must come before --quiet (try: wals-gpu --help)"),
        ("fit x --ot m", "there is no option --ot; did you mean '--out'? (try: wals-gpu fit --help)"),
        ("fit x -out m", "there is no option -out; did you mean '--out'?"),
        ("fit x --out m --Factor_s 3", "there is no option --Factor_s; did you mean '--factors'?"),
        (
            "fit x --regularization 3",
            "there is no option --regularization; it is a parameter of the objective: --set reg",
        ),
        ("recommend MODEL p00 --k 3", "there is no option --k; did you mean '-k'?"),
        ("recommend MODEL p00 -zzz", "there is no option -zzz (try"),
        ("recommend MODEL --deny", "--deny: expected one argument"),
        ("fit x --out m --it 3", "--it may be --item-column or --iterations or --items"),
        ("embed x y --out m.npy --encoder e", "unexpected argument: 'y' (try: wals-gpu embed --help)"),
        ("fit PLAYS none.csv --out m", "INTERACTIONS: No such file or directory: none.csv"),
        ("doctor x y", "unexpected arguments: 'x' 'y'"),
        ("recommend MODEL p00 --explore ubc", "--explore must be one of ucb, thompson, got 'ubc'; did you mean 'ucb'?"),
        ("fit x --out m --objective IALS", "did you mean 'ials'?"),
        ("fit x --out m --solver cholesky2", "did you mean 'cholesky'?"),
        ("fit PLAYS --out m --set regularisation=1", "did you mean 'regularization'?"),
        ("fit PLAYS --out m --set lambda=1", "did you mean 'regularization'?"),
        ("fit PLAYS --out m --seed x", "--seed must be a whole number, got 'x'"),
        ("fit PLAYS --out m --over-relaxation much", "--over-relaxation must be a number, got 'much'"),
        ("fit PLAYS --out m --popularity-exponent all", "--popularity-exponent must be a number or auto, got 'all'"),
        ("fit PLAYS --out m --popularity-exponent auto", "--popularity-exponent auto needs --validation"),
        (
            "evaluate PLAYS --popularity-exponent auto",
            "--popularity-exponent auto is chosen by the validation of a fit",
        ),
        ("fit PLAYS --out m --patience 3", "--patience needs --validation"),
        ("fit PLAYS --out m --metric map@3 --validate-every 2", "--metric and --validate-every need --validation"),
        ("fit PLAYS --out m --resume", "--resume needs --checkpoint-dir"),
        ("fit PLAYS --out m --metric ndgc@10 --validation 0.2", "--metric must be one of recall, "),
        ("fit PLAYS --out m --validation none.csv", "--validation: No such file or directory: none.csv"),
        ("fit MODEL --out m", "is a saved model; wanted is a file of interactions"),
        ("fit PLAYS --out PLAYS", "--out: "),
        ("recommend MODEL/model.json p00", "MODEL must be a folder that 'wals-gpu fit' saved; "),
        ("recommend PLAYS p00", "MODEL must be a folder that 'wals-gpu fit' saved; "),
        ("recommend MODEL --all --out none/top.csv", "--out none/top.csv: there is no folder none; make it first"),
        ("recommend MODEL --all --out .csv", "--out must end in .parquet, "),
        ("similar MODEL s00 --out none/top.csv", "--out none/top.csv: there is no folder none; make it first"),
        ("recommend MODEL p00 --deny none.csv", "--deny: No such file or directory: none.csv"),
        ("recommend MODEL p00 --deny-items .", "--deny-items: Is a directory: ."),
        ("recommend MODEL p00 --seed 3", "--seed needs --explore thompson"),
        ("recommend MODEL p00 --title-column name", "--title-column needs --titles FILE"),
        ("recommend", "arguments are required: MODEL (try"),
        ("recommend MODEL --text blue", "--text needs a model that was fitted with --items and --encoder; "),
        ("recommend MODEL p00 --titles MODEL", "is a saved model; wanted is a table of items, for --titles"),
        ("recommend MODEL p00 --deny MODEL", "is a saved model; wanted is a table of pairs, for --deny"),
        ("recommend MODEL p00 --noise much", "--noise must be a number, got 'much'"),
        ("evaluate PLAYS --fraction much", "--fraction must be a number, got 'much'"),
        ("recommend MODEL p00 --titles none.csv", "--titles: No such file or directory: none.csv"),
    ],
)
def test_mistakes_are_answered_with_what_was_meant(run, plays, model, tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    status, text, said = run(*line.replace("PLAYS", str(plays)).replace("MODEL", str(model)).split())
    assert (status, text) == (2, "")
    assert message in said
    assert said.startswith("wals-gpu: error: ") and said.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "words", [["recommend", "MODEL", "--all"], ["similar", "MODEL", "s00"], ["fit", "nowhere.csv"]]
)
def test_where_nothing_can_be_made_is_refused_before_any_work(run, model, tmp_path, monkeypatch, words):
    monkeypatch.setattr(WALS, "load", partial(pytest.fail, "the model was loaded"))

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    words = [model if word == "MODEL" else word for word in words]
    out = tmp_path / ("m" if words[0] == "fit" else "top.csv")
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", refuse)
        said = run(*words, "--out", out)[2]
    assert said == f"wals-gpu: error: --out {out} cannot be made in {tmp_path}: Read-only file system\n"
    if words[0] != "fit":
        (tmp_path / "folder.csv").mkdir()
        assert "is a folder" in run(*words, "--out", tmp_path / "folder.csv")[2]


def test_a_disk_without_room_for_the_model_is_refused_before_the_fit(run, plays, tmp_path, monkeypatch):
    """24 users and 12 items of 8 factors in float32, and 100 entries."""
    fits = []
    monkeypatch.setattr(WALS, "fit", lambda *_, **__: fits.append(1) or pytest.fail("the fit began"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1951))
    status, _, said = run("fit", plays, "--out", tmp_path / "m", *QUICK)
    assert status == 2 and "the model takes 1.95e-06 GB, and 1.95e-06 GB are free there" in said
    assert not fits and list(tmp_path.iterdir()) == []
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1952))
    with pytest.raises(pytest.fail.Exception, match="the fit began"):
        run("fit", plays, "--out", tmp_path / "m", *QUICK)


def test_more_items_than_there_are_take_no_memory(run, model):
    expected = run("recommend", model, "p03", "-k", 12)
    assert expected[0] == 0 and run("recommend", model, "p03", "-k", 10**12) == expected
    assert run("similar", model, "s03", "-k", 10**12) == run("similar", model, "s03", "-k", 11)


def test_long_lists_are_made_for_few_users_at_a_time(run, model, tmp_path, monkeypatch):
    assert run("recommend", model, "--all", "-k", 5, "--out", tmp_path / "whole.csv")[0] == 0
    sizes, chunks = [], WALS.recommend_chunks

    def asked(*arguments, chunk_size, **options):
        sizes.append(chunk_size)
        return chunks(*arguments, chunk_size=chunk_size, **options)

    monkeypatch.setattr(WALS, "recommend_chunks", asked)
    monkeypatch.setattr(recommend, "PLACES_PER_CHUNK", 16)
    for k in (5, 10**9):
        assert run("recommend", model, "--all", "-k", k, "--out", tmp_path / f"{k}.csv")[0] == 0
    assert sizes == [3, 1] and (tmp_path / "5.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_who_gets_nothing_is_named(run, model, tmp_path):
    (tmp_path / "none.txt").write_text("")
    status, text, said = run("recommend", model, *(f"p0{n}" for n in range(5)), "--allow-items", tmp_path / "none.txt")
    assert status == 0 and len(text.splitlines()) == 2
    assert said == "wals-gpu: no item is left for 'p00', 'p01', 'p02' and 2 more\n"


def test_the_library_suggests_too():
    with pytest.raises(ValueError, match=r"got 'hu2'; did you mean 'hu'\?"):
        WALS(objective="hu2")
    with pytest.raises(TypeError, match=r"has no parameter Alpha; .*; did you mean 'alpha'\?"):
        make_objective("hu", Alpha=3)
    with pytest.raises(
        TypeError, match=r"no parameter alpha; it has .*, nu; implicit, hu, spark have one of that name"
    ):
        WALS(alpha=3)
    with pytest.raises(ValueError, match=r"got 'gpu'; did you mean 'cuda'\?"):
        WALS(device="gpu")
    with pytest.raises(ValueError, match=r"got 'choleski'; did you mean 'cholesky'\?"):
        WALS(solver="choleski")
    assert did_you_mean("zzz", ["alpha", "beta"]) == ""
    assert did_you_mean("User_ID", ["user-id", "item"]) == "; did you mean 'user-id'?"


def test_the_library_is_quoted_in_options():
    parser = command_parsers()["fit"]
    said = parser.in_options("user_column='who' must be set; the item_column too: /data/user_column/x 'item_column'")
    assert said == "--user-column 'who' must be set; the --item-column too: /data/user_column/x 'item_column'"
    assert parser.in_options("metric must be one") == "--metric must be one"
    assert parser.in_options("num_threads and random_state") == "--threads and --seed"
    assert parser.in_options("the metric must") == "the metric must"


# --------------------------------------------------------------------------------------------- help, output, completion


def test_help_by_every_way(run):
    status, text, said = run()
    assert (status, said) == (0, "") and text.startswith("usage: wals-gpu") and "first steps:" in text
    assert run("help") == run("--help") == (0, text, "")
    assert run("help", "fit") == run("fit", "--help")
    assert run("help", "fti")[0] == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["doctor"], ["recommend", "MODEL", "p03"], ["recommend", "MODEL", "p03", "--json"]])
def test_standard_output_on_a_full_disk_is_an_error_of_one_line(model, words):
    command = [sys.executable, "-m", "wals_gpu", *(str(model) if word == "MODEL" else word for word in words)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("wals-gpu: error: ") and "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


def test_closed_standard_output_is_no_error(model, tmp_path):
    command = f"exec {sys.executable} -m wals_gpu recommend {model} --all --out {tmp_path}/top.csv >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "top.csv").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "feather"])
def test_a_disk_that_fills_up_leaves_the_earlier_file(tmp_path, suffix):
    """Files of this process may not be larger than so much."""
    rng = np.random.default_rng(0)
    WALS(2, iterations=1).fit((rng.random((3000, 40)) < 0.1).astype(np.float32)).save(tmp_path / "m")
    out = tmp_path / f"top.{suffix}"
    out.write_text("earlier")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from wals_gpu.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["recommend", tmp_path / "m", "--all", "--out", out, "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"wals-gpu: error: --out {out}: File too large\n"
    assert out.read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["m", out.name]


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    """What bash makes of lines, with the script that the program prints, in a folder with some files."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("shell")
    (folder / "wals-gpu").write_text(completion.script(make_parser(), "bash"))
    (folder / "plays.csv").write_text("")
    (folder / "model").mkdir()

    def of(line):
        """COMPREPLY, as bash sets up completion functions: by words, with the number of the one to complete."""
        words = shlex.split(line) + [""] * line.endswith(" ")
        code = 'source ./wals-gpu; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _shtab_wals_gpu; '
        code += "printf '%s\\n' \"${COMPREPLY[@]}\""
        done = subprocess.run(["bash", "-c", code, "bash", *words], cwd=folder, capture_output=True, text=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    return of


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("wals-gpu rec", {"recommend"}),
        ("wals-gpu fit --objec", {"--objective"}),
        ("wals-gpu fit plays.csv --objective i", {"implicit", "ials"}),
        ("wals-gpu recommend -k 3 m ann --unknown s", {"skip"}),
        ("wals-gpu fit plays.csv --objective ials --set unob", {"unobserved_weight="}),
        ("wals-gpu fit plays.csv --device c", {"cpu", "cuda"}),
        ("wals-gpu fit pl", {"plays.csv"}),
        ("wals-gpu recommend m", {"model"}),
        ("wals-gpu recommend model ann --titles pl", {"plays.csv"}),
    ],
)
def test_shells_complete_commands_options_and_values(completions, line, expected):
    assert completions(line) == expected


def test_every_shell_has_a_script(run):
    pytest.importorskip("shtab")
    for shell in completion.SHELLS:
        status, text, _ = run("completion", shell)
        assert status == 0 and "diversity-method" in text and "wals-gpu" in text
    assert "did you mean 'zsh'?" in run("completion", "zhs")[2]
