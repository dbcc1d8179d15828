"""``wals-gpu evaluate``: hold out a part, fit the rest, and measure against popularity."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wals_gpu import evaluation
from wals_gpu.cli.inputs import new_model, read_data, read_titles
from wals_gpu.cli.options import (
    add_computation,
    add_data,
    add_html,
    add_model,
    add_titles,
    check_device,
    count_or_share,
    positive,
)
from wals_gpu.cli.output import one_line, print_json, say, size_of
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.cli.reranking import add_reranking, check_reranking, given_reranking, reranking_options
from wals_gpu.cli.tables import check_file
from wals_gpu.evaluation.times import moment

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from wals_gpu.data.interactions import Interactions

__all__ = ["add", "check_html", "run"]

EPILOG = """\
protocols:
  random         a share of all entries is hidden (default)
  leave-one-out  one entry of each user: the last by --time-column, else any
  last-n         the last --last N entries of each user who has more, by --time-column
  temporal       everything from --cutoff on, or the latest share, by --time-column
  strong         users the model has never seen; a share of their entries is hidden
                 and asked for, the rest is what they are known by

metrics (means over the users with a hidden item):
  recall@k       hidden items found in the first k, over min(k, number hidden)
  plain_recall@k the same over the number hidden
  ndcg@k         the same with early places counting more (binary, log2)
  precision, hit_rate, map, mrr    as usual; docs/evaluation.md has the formulas
  novelty@k      how rare the recommended items are, in bits
  serendipity@k  hidden items found that are not among the k most popular ones
  intra_list_diversity@k   how much items of a list differ: mean 1 - cosine
                 of their factors
  coverage@k     share of the catalogue that anybody is shown
  gini@k         how unequally it is shown: 0 all alike, 1 one item for everybody

examples:
  wals-gpu evaluate plays.parquet --objective ials --set unobserved_weight=0.01
  wals-gpu evaluate plays.parquet --protocol leave-one-out --time-column time -k 10
  wals-gpu evaluate plays.parquet --time-column time --cutoff 2024-01-31
  wals-gpu evaluate plays.parquet --html report.html --titles items.csv
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "evaluate", "hold out a part, fit, and measure against popularity", run, EPILOG)
    add_data(parser)
    parser.add_argument(
        "--protocol",
        choices=["random", "strong", "leave-one-out", "last-n", "temporal"],
        help="what is held out (default random; with --cutoff temporal, with --last last-n)",
    )
    parser.add_argument("--fraction", type=float, default=0.2, help="share held out (default 0.2)")
    parser.add_argument(
        "--heldout", type=count_or_share, default=0.1, help="strong: users held out, a share or a number"
    )
    parser.add_argument(
        "--cutoff", metavar="DATE",
        help="temporal: first moment of the test period, such as 2024-01-31 (its beginning, UTC); a number where the "
        "times are numbers",
    )  # fmt: skip
    parser.add_argument("--last", metavar="N", type=positive, help="last-n: entries of each user (default 1)")
    parser.add_argument(
        "--negatives", metavar="N", type=positive, help="rank only the hidden items and N others drawn for each user"
    )
    parser.add_argument(
        "--cohorts", metavar="N", type=positive, help="also users and items with 0, up to N, and more known entries"
    )
    parser.add_argument("-k", type=positive, nargs="+", default=[20, 100], help="list lengths (default 20 100)")
    add_html(parser, "metrics, cohorts, curves, the data, lists to judge")
    add_titles(parser)
    add_model(parser)
    add_reranking(parser)
    add_computation(parser)


def run(args: argparse.Namespace) -> None:
    """Split, fit, measure and print."""
    protocol = _protocol(args)
    if args.popularity_exponent == "auto":
        raise ValueError(
            "--popularity-exponent auto is chosen by the validation of a fit, and this fit has none: give the number "
            "that 'wals-gpu fit --validation' chose"
        )
    check_reranking(args)
    check_device(args, max(args.k) if args.negatives is None else None)
    if args.html is not None:
        check_html(args.html)
    elif args.titles is not None and args.quota is None:
        raise ValueError("--titles are shown in the page of --html FILE, or say the categories of --quota")
    titles = None if args.html is None and args.quota is not None else read_titles(args)
    model = new_model(args)
    data = read_data(args)
    more = reranking_options(args, max(args.k), data.matrix.shape[1], data.item_ids)
    train, fold_in, test = _split(args, protocol, data)
    if not test.nnz:
        raise ValueError(f"--protocol {protocol} hides none of {data.matrix.nnz:,} interactions: these are too few")
    began = time.perf_counter()
    model.fit(train, show_progress=not args.quiet)
    seconds = time.perf_counter() - began
    few_shot = 5 if args.cohorts is None and args.html is not None else args.cohorts
    options: dict[str, Any] = {"fold_in": fold_in, "few_shot": few_shot, "random_state": args.seed}
    options["options"] = more
    if args.negatives is not None:
        known = train if fold_in is None else fold_in
        try:
            options["candidates"] = evaluation.sample_negatives(known, test, args.negatives, args.seed)
        except ValueError as error:
            raise ValueError(f"--negatives {args.negatives}: {error}") from error
    report = evaluation.evaluate(model, train, test, args.k, **options)
    if args.json:
        objective = {"name": model.objective.name, **model.objective.parameters()}
        settings = {"protocol": protocol, "seed": args.seed, "objective": objective, "fit_seconds": seconds}
        settings |= {"regularization": model.regularization_}
        settings |= given_reranking(args)
        print_json(settings | report.to_dict())
    else:
        print(f"{size_of(data)}; {train.nnz:,} to train on, {test.nnz:,} to find; fitted in {seconds:.1f} s\n")
        print(f"{report}\n[in brackets: 95 % interval, bootstrap over users; split {protocol}, seed {args.seed}]")
    if args.html is not None:
        from wals_gpu.report import write_report

        made = {"interactions": ", ".join(map(str, args.interactions)), "split": protocol, "seed": args.seed}
        made |= {"share held out": args.fraction} if protocol in ("random", "strong", "temporal") else {}
        made |= {"cutoff": args.cutoff} if args.cutoff is not None else {}
        made |= {"sampled negatives of each user": args.negatives} if args.negatives is not None else {}
        made |= {name.replace("_", " "): _shown(value) for name, value in given_reranking(args).items()}
        with writing_html(args.html):
            write_report(
                args.html, report, model=model, train=train, test=test, fold_in=fold_in, options=more,
                candidates=options.get("candidates"), data=data, titles=titles,
                settings=made | {"fitted in": f"{seconds:.1f} s"}, random_state=args.seed,
                title=f"Ranking report: {', '.join(Path(one).name for one in args.interactions)}",
            )  # fmt: skip


def _shown(value: Any) -> str:
    """An option as it was typed."""
    if not isinstance(value, list):
        return str(value)
    bounds = ((name, ":".join(map(str, bound)) if isinstance(bound, tuple) else bound) for name, bound in value)
    return ", ".join(f"{bound}" if name is None else f"{name}={bound}" for name, bound in bounds)


@contextlib.contextmanager
def writing_html(path: Path) -> Iterator[None]:
    """Say that a page was written, or why it could not be; what is printed has been printed by then."""
    try:
        yield
    except OSError as error:
        raise OSError(f"--html {path}: {one_line(error)}") from error
    say(f"wrote {path}")


def check_html(path: Path) -> None:
    """Refuse a page that could not be written, before any work."""
    from wals_gpu.report.write import check_report_path

    check_report_path(path, "--html")
    check_file(path, "--html")


def _protocol(args: argparse.Namespace) -> str:
    """What is held out; options that it needs and are not there, or it has no use for, are refused at once."""
    protocol: str = args.protocol or next(
        (of for of, value in (("temporal", args.cutoff), ("last-n", args.last)) if value is not None), "random"
    )
    if protocol in ("temporal", "last-n") and args.time_column is None and "time" not in (args.columns or ()):
        raise ValueError(f"--protocol {protocol} needs --time-column COLUMN")
    for option, value, of in (("--cutoff", args.cutoff, "temporal"), ("--last", args.last, "last-n")):
        if value is not None and protocol != of:
            raise ValueError(f"{option} is for --protocol {of}, not for {protocol}")
    return protocol


def _split(
    args: argparse.Namespace, protocol: str, data: Interactions
) -> tuple[csr_matrix, csr_matrix | None, csr_matrix]:
    """What to train on, what new users are known by (strong generalisation only), and what to find.

    Matrices: millions of lists of numbers have no need for names.
    """
    if protocol == "strong":
        strong = evaluation.strong_generalisation_split(data.matrix, args.heldout, args.fraction, args.seed)
        return strong.train, strong.fold_in, strong.test
    if protocol == "random":
        train, test = evaluation.random_holdout(data, args.fraction, args.seed)
    elif protocol == "leave-one-out":
        train, test = evaluation.leave_one_out(data, random_state=args.seed)
    elif protocol == "last-n":
        train, test = evaluation.last_n(data, args.last or 1)
    else:
        train, test = evaluation.temporal_split(data, fraction=args.fraction, cutoff=_cutoff(args.cutoff, data.times))
    return train.matrix, None, test.matrix


def _cutoff(text: str | None, times: NDArray[Any] | None) -> Any:
    """A moment of the kind of the times."""
    if text is None or times is None:
        return None
    value: Any = text
    if times.dtype.kind != "M":
        with contextlib.suppress(ValueError):  # what is none is refused below
            value = float(text)
    return moment("--cutoff", value, times)
