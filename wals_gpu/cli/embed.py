"""``wals-gpu embed``: item texts as vectors, for text priors."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from wals_gpu.cli.options import add_quiet, positive
from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command

__all__ = ["add", "run"]

EPILOG = """\
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


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(commands, "embed", "turn item texts into vectors, for text priors", run, EPILOG)
    parser.add_argument("items", metavar="ITEMS", type=Path, help="table of items, or a text per line")
    parser.add_argument(
        "--encoder", metavar="NAME", required=True, help="folder of a transformers model, or its name on the hub"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="write to .npy or .parquet")
    parser.add_argument("--text", metavar="COLUMNS", help="joined where several (default: named like text, else title)")
    parser.add_argument("--item-column", metavar="COLUMN", help="default: the one named like item_id")
    parser.add_argument(
        "--layers",
        type=_layers,
        default="last4",
        help="last4 (default), last, first_last, all, or numbers such as 3,-1",
    )
    parser.add_argument("--pooling", choices=["mean", "cls"], default="mean", help="over tokens (default mean)")
    parser.add_argument("--max-length", type=positive, default=128, help="tokens of a text (default 128)")
    parser.add_argument("--batch-size", type=positive, help="longest texts per batch (default 32, on a CPU 8)")
    parser.add_argument("--device", help="of the encoder: cpu or cuda (default: cuda where torch has one)")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of the computation (default auto)"
    )
    parser.add_argument("--normalize", action="store_true", help="scale vectors to length 1")
    parser.add_argument("--cache", metavar="DIR", type=Path, help="keep vectors here for later runs")
    add_quiet(parser)


def _layers(text: str) -> str | list[int]:
    """A name, or numbers separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        return text


def run(args: argparse.Namespace) -> None:
    """Encode the texts and write their vectors."""
    from wals_gpu.text.items import read_item_texts, write_embeddings
    from wals_gpu.text.transformer import TextEncoder

    as_array = args.out.suffix == ".npy"
    if not as_array and args.out.suffix not in (".parquet", ".pq"):
        raise ValueError(f"--out must end in .npy or .parquet, got {args.out}")
    if not args.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out: there is no folder {args.out.absolute().parent}")
    columns = None if args.text is None else args.text.split(",")
    ids, texts = read_item_texts(args.items, text_columns=columns, item_column=args.item_column)
    encoder = TextEncoder(
        args.encoder,
        layers=args.layers,
        pooling=args.pooling,
        max_length=args.max_length,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        cache_dir=args.cache,
    )
    began = time.perf_counter()
    array = args.out if as_array else args.out.with_name(f".{args.out.name}.npy")
    vectors = encoder.encode(texts, show_progress_bar=not args.quiet, normalize_embeddings=args.normalize, out=array)
    if not as_array:
        write_embeddings(args.out, ids, vectors)
        array.unlink()
    seconds = time.perf_counter() - began
    empty = sum(not text.strip() for text in texts)
    if args.json:
        shape = {"texts": len(texts), "empty": empty, "dimension": vectors.shape[1]}
        print_json({"out": str(args.out), **shape, "encoder": encoder.to_config(), "seconds": seconds})
    else:
        remark = f"; {empty:,} empty texts have the mean of the others" if empty else ""
        print(f"wrote {len(texts):,} vectors of {vectors.shape[1]} to {args.out} in {seconds:.1f} s{remark}")
