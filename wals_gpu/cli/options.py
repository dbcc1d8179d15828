"""Options that several commands share, each with one help text, and the kinds of values that options take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from wals_gpu.backends.devices import DEVICES, device_index, make_backend
from wals_gpu.backends.solve import SOLVERS
from wals_gpu.checks import integer
from wals_gpu.cli.settings import default_of
from wals_gpu.evaluation.times import seconds_of
from wals_gpu.model.wals import HYBRID_SETTINGS
from wals_gpu.objective.presets import PRESETS

__all__ = [
    "add_columns",
    "add_computation",
    "add_data",
    "add_html",
    "add_item_lists",
    "add_model",
    "add_model_folder",
    "add_quiet",
    "add_rank_timeout",
    "add_reading",
    "add_titles",
    "check_device",
    "count_or_share",
    "names_of_columns",
    "number",
    "number_or_auto",
    "positive",
    "rank_timeout",
    "setting",
    "share_or_path",
    "whole_number",
]


class Devices(tuple[str, ...]):
    """Names of devices, and beside them those of all CUDA devices, as "cuda:1"."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or device_index(name) is not None


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """--quiet."""
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_model_folder(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder that 'wals-gpu fit' saved")


def add_computation(parser: argparse.ArgumentParser) -> None:
    """--device and --threads, of every command that computes with a model."""
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--device", choices=Devices(DEVICES),
        help="cuda: the current CUDA device, in float32; cuda:1: that one; auto (default): CUDA for large fits",
    )  # fmt: skip
    group.add_argument(
        "--threads", metavar="N", type=whole_number,
        help="of the CPU; 0 (default): all that this process may use",
    )  # fmt: skip


def add_rank_timeout(parser: argparse.ArgumentParser) -> None:
    """--rank-timeout, of commands that torchrun starts on several ranks."""
    parser.add_argument(
        "--rank-timeout", metavar="SPAN",
        help="under torchrun: give up once another rank is silent for so long, such as 5min (default 30min)",
    )  # fmt: skip


def rank_timeout(args: argparse.Namespace) -> float:
    """Of --rank-timeout, in seconds."""
    return 1800.0 if args.rank_timeout is None else seconds_of("--rank-timeout", args.rank_timeout)


def check_device(args: argparse.Namespace, k: int | None = None) -> None:
    """Refuse a device that cannot be used, or not for this model, before any file is read or any text encoded.

    `k`: results that it is to find in a search of all items.
    """
    try:
        backend = make_backend(args.device, integer("num_threads", args.threads, 0))
    except RuntimeError as error:  # no CUDA here: at the command line, a bad argument like any other
        raise ValueError(f"--device {args.device}: {error}") from error
    backend.check(k=k)
    if "dtype" in args:  # a new model, not one that is loaded
        backend.check(factors=args.factors, dtype=np.dtype(args.dtype))


def add_data(parser: argparse.ArgumentParser) -> None:
    """INTERACTIONS, and how to read them."""
    parser.add_argument(
        "interactions", metavar="INTERACTIONS", nargs="+",
        help="files, folders or addresses (s3://...) of Parquet, CSV, JSON Lines or Feather, one row per interaction; "
        "- for standard input",
    )  # fmt: skip
    add_columns(parser)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """How to read tables of interactions, wherever they are; :func:`.read_data` looks at each."""
    group = add_reading(parser)
    group.add_argument(
        "--time-column", metavar="COLUMN", help="when it happened: numbers, dates with or without zones, ISO text"
    )
    group.add_argument("--min-user-interactions", metavar="N", type=positive, help="leave out users with fewer items")
    group.add_argument("--min-item-interactions", metavar="N", type=positive, help="leave out items with fewer users")
    group.add_argument(
        "--half-life", metavar="SPAN",
        help="a row this much older than the latest counts half: 90d, 12h, or a number in the unit of --time-column",
    )  # fmt: skip
    group.add_argument("--dtype", choices=["float32", "float64"], help="of values and factors (default float32)")


def add_reading(parser: argparse.ArgumentParser, default: str | None = None) -> Any:
    """Which columns of a table are what, and how they are read; the group of these arguments, for more of them.

    `default`: in words, which columns are taken where that is not by usual names.
    """
    group = parser.add_argument_group("data")
    usual = {
        "user": "the one named like user_id",
        "item": "the one named like item_id",
        "value": "one named like value, rating or count; without one, every row is 1",
    }
    for column, named in usual.items():
        group.add_argument(f"--{column}-column", metavar="COLUMN", help=f"default: {default or named}")
    group.add_argument("--no-values", action="store_true", help="every row is 1, whatever columns there are")
    group.add_argument(
        "--columns", metavar="NAMES", type=names_of_columns,
        help="of a text file without a line of names, such as user,item,value,time; _ for one to skip",
    )  # fmt: skip
    group.add_argument("--encoding", metavar="NAME", help="of text files, such as cp1252 (default utf-8)")
    group.add_argument(
        "--min-value", metavar="X", type=float, help="leave out rows with a lower value, such as bad ratings"
    )
    return group


def add_model(parser: argparse.ArgumentParser, *, is_searched: bool = False) -> None:
    """What is fitted, and how; where that is searched, what is said here is not."""
    group = parser.add_argument_group("settings that are not to be searched" if is_searched else "model")

    def usual(setting: str) -> str:
        return "default: searched" if is_searched else _defaults(setting)

    if is_searched:
        parser.set_defaults(config=None, iterations=None)
    else:
        group.add_argument(
            "--config", "--settings", dest="config", metavar="FILE", type=Path,
            help="JSON file of 'wals-gpu tune', or of json.dump(model.to_config(), file); options go before it",
        )  # fmt: skip
    group.add_argument(
        "--factors", metavar="D", type=positive, help=f"size of a user's and an item's vector ({usual('factors')})"
    )
    if not is_searched:
        group.add_argument(
            "--iterations", metavar="N", type=positive, help=f"sweeps over users and items ({_defaults('iterations')})"
        )
    group.add_argument("--objective", choices=list(PRESETS), help=f"what is minimised ({_defaults('objective')})")
    group.add_argument(
        "--set", metavar="NAME=VALUE", type=setting, action="append", default=[], help="parameter of the objective"
    )
    group.add_argument(
        "--solver", choices=("auto", *SOLVERS), help=f"how a row is solved (default {default_of('solver')})"
    )
    group.add_argument(
        "--over-relaxation", metavar="W", type=number,
        help=f"from 1 to below 2 ({usual('over_relaxation')}): 1.7 takes half the iterations to the same"
        " loss",
    )  # fmt: skip
    group.add_argument(
        "--popularity-exponent", metavar="X|auto", type=number_or_auto,
        help=f"multiply scores by this power of an item's entries ({usual('popularity_exponent')}); "
        "auto: the one that --validation is best with",
    )  # fmt: skip
    group.add_argument(
        "--neighbors", metavar="M", type=whole_number,
        help="add to scores what the items of a user say of each of their M neighbours "
        f"({usual('neighbors')}; 100 to 300 rank better on most logs)",
    )  # fmt: skip
    group.add_argument(
        "--neighbor-weight", metavar="W", type=number,
        help=f"what that counts beside the factors ({usual('neighbor_weight')})",
    )  # fmt: skip
    group.add_argument(
        "--neighbor-regularization", metavar="X", type=number,
        help=f"its ridge, in users ({usual('neighbor_regularization')})",
    )  # fmt: skip
    group.add_argument(
        "--seed", metavar="N", type=whole_number,
        help=f"of everything random (default {default_of('random_state')})",
    )  # fmt: skip
    add_quiet(parser)
    parser.set_defaults(settings={})  # what fill_settings makes of these


def _defaults(setting: str) -> str:
    """What the library takes for a setting, without and with item texts."""
    default = default_of(setting)
    with_texts = HYBRID_SETTINGS.get(setting, default)
    shown = f"{default:g}" if isinstance(default, float) else default
    return f"default {shown}" + (f"; with --encoder {with_texts}" if with_texts != default else "")


def add_titles(parser: argparse.ArgumentParser) -> None:
    """--titles and --title-column."""
    group = parser.add_argument_group("titles, to be shown beside the ids of items")
    group.add_argument("--titles", metavar="FILE", type=Path, help="table of items: Parquet, CSV, TSV or JSON lines")
    group.add_argument("--title-column", metavar="COLUMN", help="default: the one named like title or name")


def add_html(parser: Any, what: str) -> None:
    """--html."""
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help=f"also write a page: {what}; one file that loads nothing else"
    )


def add_item_lists(parser: argparse.ArgumentParser) -> None:
    """--deny-items and --allow-items."""
    group = parser.add_argument_group("lists for everybody, as text files with an item id per line")
    group.add_argument("--deny-items", metavar="FILE", type=Path, help="items not to show")
    group.add_argument("--allow-items", metavar="FILE", type=Path, help="the only items to show")


def names_of_columns(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",")]


def share_or_path(text: str) -> float | str:
    """A number, else the name of a file."""
    try:
        return float(text)
    except ValueError:
        return text


def whole_number(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def positive(text: str) -> int:
    """A whole number from 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def number_or_auto(text: str) -> float | str:
    """A number, or the word auto."""
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from None


def count_or_share(text: str) -> float:
    """A whole number, or a number with a point."""
    return int(text) if text.isdigit() else number(text)


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE with a number, true, false, null or text; the objective checks both."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must look like alpha=40, got {text!r}")
    try:
        return name, float(value)
    except ValueError:
        return name, {"true": True, "false": False, "null": None, "none": None}.get(value.lower(), value)
