"""``wals-gpu demo``: learn from the embedded data, measure, and show recommendations that anybody can judge."""

from __future__ import annotations

import argparse

from wals_gpu.cli.evaluate import check_html
from wals_gpu.cli.options import add_computation, add_html, add_quiet, check_device, whole_number
from wals_gpu.cli.output import print_json
from wals_gpu.cli.parser import Commands, add_command

__all__ = ["add", "run"]

NEXT_STEPS = (
    "Your own data: wals-gpu evaluate FILE, then wals-gpu fit FILE --out MODEL.\n"
    "Look at what it learned in a browser: wals-gpu serve MODEL. More: wals-gpu --help"
)


def add(commands: Commands) -> None:
    """The command's arguments."""
    parser = add_command(
        commands, "demo", "learn from the embedded Debian data, measure, and show recommendations", run
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="seed of split, start and bootstrap (default 0)")
    add_html(parser, "the report that 'wals-gpu evaluate --html' makes")
    add_quiet(parser)
    add_computation(parser)


def run(args: argparse.Namespace) -> None:
    """Run both parts of the demo, or say what the second needs."""
    # Imported here: the data and the encoder are nobody else's.
    from wals_gpu.cli.demo_links import format_demo, run_demo
    from wals_gpu.cli.demo_texts import demo_encoder, format_text_demo, run_text_demo

    check_device(args)
    if args.html is not None:
        check_html(args.html)
    show_progress = not (args.quiet or args.json)
    options = {"seed": args.seed, "device": args.device, "num_threads": args.threads, "show_progress": show_progress}
    links = run_demo(**options, html=args.html)
    if not args.json:
        print(format_demo(links), flush=True)
    texts, missing = None, ""
    try:
        encode = demo_encoder(show_progress)
    except ImportError as error:
        missing = str(error.name or error)
    else:
        texts = run_text_demo(encode, **options)
    if args.json:
        print_json(links.to_dict() | {"text": None if texts is None else texts.to_dict()})
        return
    if texts is None:
        needs = f"it needs {missing}: pip install 'wals_gpu[demo]'"
        print(f"\nLeft out: packages that nobody names yet, by their descriptions ({needs}).")
    else:
        print(f"\n{format_text_demo(texts)}")
    print(f"\n{NEXT_STEPS}")
