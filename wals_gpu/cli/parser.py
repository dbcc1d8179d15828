"""The arguments of the command line, and the help that teaches them."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["make_parser", "say"]


def say(text: str) -> None:
    """One line for the person at the terminal, beside the results."""
    print(f"wals-gpu: {text}", file=sys.stderr, flush=True)


_ABOUT = """\
Recommendations from implicit feedback (who bought, read, played what) by
weighted alternating least squares."""

_FIRST_STEPS = """\
first steps:
  wals-gpu demo                                  see it work, in under a minute
  wals-gpu evaluate plays.parquet                does it beat popularity on my data?
  wals-gpu fit plays.parquet --out model         learn from all of it
  wals-gpu recommend model alice bob             what to show to alice and bob
  wals-gpu recommend model --all --out top.parquet
  wals-gpu similar model "Blue Train"            what is like this item

Every command explains itself: wals-gpu COMMAND --help. Exit status: 0 done,
2 bad input (one line on standard error), 130 interrupted.
"""

_RECOMMEND_HELP = """\
examples:
  wals-gpu recommend model alice bob -k 5
  wals-gpu recommend model --users-file users.txt --json
  wals-gpu recommend model --text "plays music files"
  wals-gpu recommend model --all --out top10.parquet
  wals-gpu recommend model --all --out top10.parquet --allow-items in_stock.txt \\
      --deny returned.parquet

Ids are those of the training data, or row numbers if it was a matrix. A list
ends early when no item is left. Scores compare items for one user; they are not
probabilities and do not compare users.
"""

_SIMILAR_HELP = """\
example:
  wals-gpu similar model "Blue Train" -k 5

Similarity is the cosine of the item factors: 1 is the same direction.
"""

_EMBED_HELP = """\
ITEMS is .parquet, .csv, .tsv or .jsonl with a text column, or .txt with a text per
line. FILE is .npy (rows as in ITEMS; memory-mapped while it is written) or .parquet
(columns item_id and embedding). Needs: pip install 'wals_gpu[text]'.

examples:
  wals-gpu embed items.parquet --encoder roberta-base --out items.npy
  wals-gpu embed items.csv --encoder ./my-roberta --text title,description \\
      --max-length 256 --cache ~/.cache/embeddings --out items.parquet

Killed or interrupted, the same command goes on where it ended. With --cache, a later
run computes new texts only. A text that is empty gets the mean of the others.
"""

_EVALUATE_HELP = """\
protocols:
  random         a share of all entries is hidden (default)
  leave-one-out  one entry of each user: the last by --time-column, else any
  temporal       everything from some moment on, by --time-column
  strong         users the model has never seen; a share of their entries is hidden
                 and asked for, the rest is what they are known by

metrics (means over the users with a hidden item):
  recall@k       hidden items found in the first k, over min(k, number hidden)
  plain_recall@k the same over the number hidden
  ndcg@k         the same with early places counting more (binary, log2)
  precision, hit_rate, map, mrr    as usual; docs/evaluation.md has the formulas
  novelty@k      how rare the recommended items are, in bits
  coverage@k     share of the catalogue that anybody is shown
  gini@k         how unequally it is shown: 0 all alike, 1 one item for everybody

examples:
  wals-gpu evaluate plays.parquet --objective ials --set unobserved_weight=0.01
  wals-gpu evaluate plays.parquet --protocol leave-one-out --time-column time -k 10
"""


_INDENT: dict[str, Any] = {"initial_indent": " " * 4, "subsequent_indent": " " * 6, "break_on_hyphens": False}


def _fit_help() -> str:
    """The objectives with their parameters and defaults, read from the objectives themselves."""
    from wals_gpu.objective.presets import PRESETS

    lines = []
    for name, preset in PRESETS.items():
        about = (preset.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        given = ", ".join(f"{key}={value}" for key, value in preset().parameters().items())
        lines += [f"  {name}", *(textwrap.fill(text, 79, **_INDENT) for text in (about, given))]
    return f"""\
objectives, and what --set can change (defaults shown):
{chr(10).join(lines)}

examples:
  wals-gpu fit plays.parquet --out model
  wals-gpu fit plays.csv --out model --user-column listener --item-column track
  wals-gpu fit plays.parquet --out model --objective ials \\
      --set unobserved_weight=0.01 --set regularization=0.005 --factors 64

  wals-gpu fit plays.parquet --out model --iterations 50 --validation 0.1 --patience 3
  wals-gpu fit plays.parquet --out model --checkpoint-dir unfinished --resume
  wals-gpu fit plays.parquet --out model --items tracks.csv --text title,description \
      --encoder roberta-base

With --resume, the same command begins the fit and goes on with it after a crash; the
checkpoint is removed once the model is saved.

Ctrl-C once: the running iteration ends, the model so far is saved, exit status 130.
Ctrl-C twice: stop at once and save nothing.
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line, as all others."""

    def error(self, message: str) -> NoReturn:
        say(f"error: {message} (try: {self.prog} --help)")
        raise SystemExit(2)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Room for the longest option beside its explanation."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` of what it parses is the name of the command."""
    parser = _Parser(
        prog="wals-gpu",
        formatter_class=_Formatter,
        description=_ABOUT,
        epilog=_FIRST_STEPS,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=epilog,
            formatter_class=_Formatter,
        )
        sub.set_defaults(command=name)
        sub.add_argument("--json", action="store_true", help="print JSON on standard output")
        sub.add_argument("--traceback", action="store_true", help="on an error, show where in the code it came from")
        return sub

    fit = command("fit", "learn from interactions and save a model", _fit_help())
    fit.add_argument("interactions", metavar="INTERACTIONS", help="Parquet or CSV file, one row per interaction")
    fit.add_argument(
        "--out", metavar="MODEL", type=Path, required=True, help="folder to save to; a model there is replaced"
    )
    _add_data_options(fit)
    _add_model_options(fit)
    _add_training_options(fit)
    texts = fit.add_argument_group("item texts: items nobody has yet are recommended too")
    texts.add_argument("--items", metavar="FILE", type=Path, help="table of items with their texts")
    texts.add_argument("--encoder", metavar="NAME", help="folder of a transformers model, or its name on the hub")
    texts.add_argument("--text", metavar="COLUMNS", help="of the table, joined where several (default text)")
    texts.add_argument("--strength", type=float, help="what a text is worth (default 3; with --objective its ridge)")

    recommend = command("recommend", "recommend items to users of a saved model", _RECOMMEND_HELP)
    recommend.add_argument("model", metavar="MODEL", type=Path, help="folder that 'wals-gpu fit' saved")
    recommend.add_argument("users", metavar="USER", nargs="*", help="user ids as in the training data")
    recommend.add_argument(
        "--users-file", metavar="FILE", help="text file with a user id per line; - for standard input"
    )
    recommend.add_argument("--text", metavar="TEXT", help="the items that are most like this text, instead of USERs")
    recommend.add_argument("--all", action="store_true", help="every user, chunk by chunk; needs --out")
    recommend.add_argument(
        "--out", metavar="FILE", type=Path, help="write user_id, rank, item_id, score to .parquet or .csv"
    )
    recommend.add_argument("-k", type=_positive, default=10, help="items per user (default 10)")
    recommend.add_argument("--include-seen", action="store_true", help="also what the user already has")
    recommend.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_item_lists(recommend)
    lists = recommend.add_argument_group("lists for each user: Parquet or CSV files with a user and an item column")
    lists.add_argument("--deny", metavar="FILE", type=Path, help="pairs not to recommend")
    lists.add_argument("--allow", metavar="FILE", type=Path, help="the only pairs to recommend")
    lists.add_argument("--user-column", metavar="COLUMN", help="default: the one named like user_id")
    lists.add_argument("--item-column", metavar="COLUMN", help="default: the one named like item_id")
    explore = recommend.add_argument_group("exploration: what the model is unsure of gets a chance")
    explore.add_argument("--explore", choices=["ucb", "thompson"], help="upper bounds of the scores, or draws")
    explore.add_argument("--noise", type=float, help="how much; 0 is not at all (default 1)")
    explore.add_argument("--seed", type=int, help="of thompson's draws; without one they differ each time")

    similar = command("similar", "find items that are liked by the same users", _SIMILAR_HELP)
    similar.add_argument("model", metavar="MODEL", type=Path, help="folder that 'wals-gpu fit' saved")
    similar.add_argument("items", metavar="ITEM", nargs="+", help="item ids as in the training data")
    similar.add_argument("-k", type=_positive, default=10, help="items per item (default 10)")
    _add_item_lists(similar)

    embed = command("embed", "turn item texts into vectors, for text priors", _EMBED_HELP)
    embed.add_argument("items", metavar="ITEMS", type=Path, help="table of items, or a text per line")
    embed.add_argument(
        "--encoder", metavar="NAME", required=True, help="folder of a transformers model, or its name on the hub"
    )
    embed.add_argument("--out", metavar="FILE", type=Path, required=True, help="write to .npy or .parquet")
    embed.add_argument("--text", metavar="COLUMNS", default="text", help="joined where several (default text)")
    embed.add_argument("--item-column", metavar="COLUMN", help="default: the one named like item_id")
    embed.add_argument(
        "--layers", default="last4", help="last4 (default), last, first_last, all, or numbers such as 3,-1"
    )
    embed.add_argument("--pooling", choices=["mean", "cls"], default="mean", help="over tokens (default mean)")
    embed.add_argument("--max-length", type=_positive, default=128, help="tokens of a text (default 128)")
    embed.add_argument("--batch-size", type=_positive, help="longest texts per batch (default 32, on a CPU 8)")
    embed.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    embed.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of the computation (default auto)"
    )
    embed.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    embed.add_argument("--cache", metavar="DIR", type=Path, help="keep vectors here for later runs")
    embed.add_argument("--quiet", action="store_true", help="no progress bar")

    evaluate = command("evaluate", "hold out a part, fit, and measure against popularity", _EVALUATE_HELP)
    evaluate.add_argument("interactions", metavar="INTERACTIONS", help="Parquet or CSV file, one row per interaction")
    evaluate.add_argument(
        "--protocol",
        choices=["random", "strong", "leave-one-out", "temporal"],
        default="random",
        help="what is held out (default random)",
    )
    evaluate.add_argument("--fraction", type=float, default=0.2, help="share held out (default 0.2)")
    evaluate.add_argument(
        "--heldout", type=_count_or_share, default=0.1, help="strong: users held out, a share or a number"
    )
    evaluate.add_argument("--time-column", metavar="COLUMN", help="numbers that grow with time, such as Unix seconds")
    evaluate.add_argument(
        "--negatives", metavar="N", type=_positive, help="rank only the hidden items and N others drawn for each user"
    )
    evaluate.add_argument(
        "--cohorts", metavar="N", type=_positive, help="also users and items with 0, up to N, and more known entries"
    )
    evaluate.add_argument("-k", type=_positive, nargs="+", default=[20, 100], help="list lengths (default 20 100)")
    _add_data_options(evaluate)
    _add_model_options(evaluate)

    command("doctor", "show what this installation has and uses: CPU, threads, BLAS, CUDA")

    demo = command("demo", "learn from the embedded Debian data, measure, and show recommendations")
    demo.add_argument("--threads", type=int, default=0, help="0: all that this process may use")
    demo.add_argument("--seed", type=int, default=0, help="seed of split, start and bootstrap (default 0)")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _add_item_lists(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lists for everybody, as text files with an item id per line")
    group.add_argument("--deny-items", metavar="FILE", type=Path, help="items not to show")
    group.add_argument("--allow-items", metavar="FILE", type=Path, help="the only items to show")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--user-column", metavar="COLUMN", help="default: the one named like user_id")
    group.add_argument("--item-column", metavar="COLUMN", help="default: the one named like item_id")
    group.add_argument(
        "--value-column",
        metavar="COLUMN",
        help="default: one named like value, rating or count; without one, every row is 1",
    )
    group.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of values and factors")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    from wals_gpu.objective.presets import PRESETS

    group = parser.add_argument_group("model")
    group.add_argument(
        "--factors", type=_positive, help="size of a user's and an item's vector (default 128; with --encoder 256)"
    )
    group.add_argument(
        "--iterations", type=_positive, help="sweeps over users and items (default 15; with --encoder 20)"
    )
    group.add_argument(
        "--objective",
        choices=list(PRESETS),
        help="what is minimised (default implicit; with --encoder google_wals, exponent 0.5)",
    )
    group.add_argument(
        "--set", metavar="NAME=VALUE", type=_setting, action="append", default=[], help="parameter of the objective"
    )
    group.add_argument("--solver", default="auto", help="how a row is solved (default auto)")
    group.add_argument(
        "--over-relaxation", metavar="W", type=float, default=1.0,
        help="from 1 (default) to below 2: 1.7 takes half the iterations to the same loss",
    )  # fmt: skip
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    group.add_argument("--threads", type=int, default=0, help="0: all that this process may use (default)")
    group.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("validation and checkpoints")
    group.add_argument(
        "--validation",
        metavar="SHARE|FILE",
        type=_share_or_path,
        help="measure on this share, which is held out, or on a file of other interactions; the best factors are saved",
    )
    group.add_argument("--metric", help="what to measure, such as ndcg@10 or recall@20 (default ndcg@10)")
    group.add_argument("--validate-every", metavar="N", type=_positive, help="iterations between (default 1)")
    group.add_argument("--patience", metavar="N", type=_positive, help="stop after N measurements without a new best")
    group.add_argument(
        "--checkpoint-dir", metavar="FOLDER", type=Path, help="keep a checkpoint here until the model is saved"
    )
    group.add_argument("--checkpoint-every", metavar="N", type=_positive, help="iterations between (default 1)")
    group.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")


def _share_or_path(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


_positive.__name__ = "whole number"  # argparse shows it: "invalid whole number value: 'x'"


def _count_or_share(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


_count_or_share.__name__ = "number"


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE with a number, true, false, null or text; the objective checks both."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must look like alpha=40, got {text!r}")
    try:
        return name, float(value)
    except ValueError:
        return name, {"true": True, "false": False, "null": None, "none": None}.get(value.lower(), value)


class _Version(argparse.Action):
    """The version, looked up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from wals_gpu.cli.doctor import installed_version

        print(f"wals_gpu {installed_version('wals_gpu') or '(not installed)'}")
        parser.exit()
