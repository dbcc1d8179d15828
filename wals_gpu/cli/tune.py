"""``wals-gpu tune``: search the settings that rank best on held-out interactions."""

from __future__ import annotations

import argparse
from pathlib import Path

from wals_gpu.cli.evaluate import check_html, writing_html
from wals_gpu.cli.inputs import read_data, words_of_reading
from wals_gpu.cli.options import add_computation, add_data, add_html, add_model, check_device, number, positive
from wals_gpu.cli.output import print_json, say, size_of
from wals_gpu.cli.parser import Commands, add_command
from wals_gpu.cli.tables import check_file, check_table, open_table
from wals_gpu.cli.texts import add_texts, check_texts, hybrid, read_texts, words_of_texts
from wals_gpu.model.wals import WALS
from wals_gpu.training.validation import parse_metric
from wals_gpu.tuning.result import Tuning
from wals_gpu.tuning.search import import_optuna

__all__ = ["add", "run"]

EPILOG = """\
A part of the interactions is held out: the latest ones with --time-column, else some
at random. Trials begin with few factors, where they are cheap, and go on with the best
settings at more. What an option names, such as --factors 64, is not searched.

examples:
  wals-gpu tune plays.parquet --minutes 2 --out best.json
  wals-gpu fit plays.parquet --settings best.json --out model

  wals-gpu tune plays.csv --trials 100 --out best.json --metric recall@50
  wals-gpu tune plays.csv --minutes 60 --out best.json --time-column time --storage search.db
  wals-gpu tune plays.csv --out best.json --plots pictures --trials-table trials.csv
  wals-gpu tune plays.csv --out best.json --html trials.html
  wals-gpu tune plays.csv --items tracks.csv --encoder roberta-base --cache vectors --out best.json

With --storage, the same command goes on with a search that ended, and several of them
at the same time share the work. With --trials alone, the same seed gives the same
result; how many trials there are in a time differs from run to run.

Ctrl-C: the search ends, the best settings so far are saved, exit status 130.
"""


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "tune", "search the settings that rank best on held-out interactions", run, EPILOG)
    add_data(parser)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="JSON file for the best settings; one there is replaced"
    )
    group = parser.add_argument_group("search")
    group.add_argument("--minutes", metavar="M", type=number, help="how long (default 2, or as long as --trials take)")
    group.add_argument("--trials", metavar="N", type=positive, help="how many trials, those in --storage included")
    group.add_argument("--metric", default="ndcg@20", help="what is to be high, such as recall@50 (default ndcg@20)")
    group.add_argument(
        "--validation", metavar="SHARE", type=number, default=0.1,
        help="of the interactions, to choose settings with (default 0.1)",
    )  # fmt: skip
    group.add_argument(
        "--test", metavar="SHARE", type=number, default=0.1,
        help="of the interactions, to measure the best settings with at the end (default 0.1)",
    )  # fmt: skip
    group.add_argument("--storage", metavar="FILE", help="keep the trials here, or at an address that Optuna knows")
    group.add_argument("--plots", metavar="FOLDER", type=Path, help="pictures of which settings matter, as PNG")
    group.add_argument("--trials-table", metavar="FILE", type=Path, help="every trial, as .csv, .parquet, .jsonl ...")
    add_html(group, "trials, what the settings change, the data")
    add_model(parser, is_searched=True)
    add_texts(parser, is_searched=True)
    add_computation(parser)


def run(args: argparse.Namespace) -> int:
    """Search, print and write; 130 where Ctrl-C ended it early."""
    check_file(args.out, "--out")
    if args.trials_table is not None:
        check_table(args.trials_table, "--trials-table")
    if args.plots is not None:
        _check_plots(args.plots)
    if args.html is not None:
        check_html(args.html)
    if args.storage is not None and "://" not in args.storage:
        check_file(Path(args.storage), "--storage")
    minutes = 2.0 if args.minutes is None and args.trials is None else args.minutes
    if minutes is not None and not 0 < minutes < 1e6:
        raise ValueError(f"--minutes must be a number above 0, got {minutes:g}")
    parse_metric(args.metric)
    import_optuna()
    check_texts(args)
    check_device(args)
    settings = dict(args.settings)
    if args.encoder is not None:
        settings["item_prior"] = hybrid(args, *read_texts(args)).item_prior
    data = read_data(args)
    tuning = WALS.tune(
        data,
        None if minutes is None else 60 * minutes,
        trials=args.trials,
        metric=args.metric,
        validation=args.validation,
        test=args.test,
        storage=args.storage,
        refit=False,
        show_progress=not args.quiet,
        **settings,
    )
    tuning.save(args.out)
    if args.trials_table is not None:
        table = tuning.trials.to_arrow()
        with open_table(args.trials_table, table.schema, "--trials-table") as write:
            write(table.columns)
    if args.plots is not None:
        _draw(tuning, args.plots)
    if args.json:
        print_json(tuning.to_dict())
    else:
        words = [*args.interactions, *words_of_reading(args), *words_of_texts(args)]
        print(f"{size_of(data)}; {len(tuning.trials)} trials in {tuning.seconds:.0f} s\n\n{tuning}\n\nsaved {args.out}")
        print(f"next: {tuning.command(words, args.out)}")
    if args.html is not None:
        from wals_gpu.report import write_report

        files = ", ".join(map(str, args.interactions))
        made = {"interactions": files, "metric": args.metric, "seconds": round(tuning.seconds)}
        made |= {"share for validation": args.validation, "share for test": args.test} | args.settings
        with writing_html(args.html):
            write_report(args.html, data=data, tuning=tuning, settings=made, title=f"Search for settings: {files}")
    return 130 if tuning.interrupted else 0


def _check_plots(folder: Path) -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("--plots needs matplotlib: pip install 'wals_gpu[plot]'", name=error.name) from error
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--plots must be a folder; {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)


def _draw(tuning: Tuning, folder: Path) -> None:
    from matplotlib import use

    use("Agg")  # files only: no screen is needed
    from matplotlib import pyplot as plt

    for name, draw in (("slices", tuning.plot_slices), ("importance", tuning.plot_importance)):
        try:
            picture = draw()
        except ValueError as error:
            say(f"--plots: no {name}.png, as {error}")
            continue
        figure = getattr(picture, "figure", picture)
        figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        plt.close(figure)
