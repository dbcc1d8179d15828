"""Print the tables of the documentation from results/*.json, and draw the plots.

    .venv-peers/bin/python benchmarks/report.py            # README.md, benchmarks/README.md, docs/*
    .venv-peers/bin/python benchmarks/report.py --check    # exit status 1 where a table is not what the JSON says

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is that of a result file, or fit-SET for
seconds per iteration over all ranks measured on that set. Whatever stands between the markers is replaced. Plots need
matplotlib and a result file with losses; there is one for each fit-SET-RANK, one for texts and one for rankings.
"""

import argparse
import re
import sys
from pathlib import Path

from lib.common import BENCHMARKS, RESULTS
from lib.tables import load, load_text, make_table

ROOT = BENCHMARKS.parent
MARKED = re.compile(r"(<!-- table:([\w/-]+) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where a table is stale")
    pages = [ROOT / "README.md", BENCHMARKS / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    parser.add_argument("files", nargs="*", type=Path, default=pages)
    args = parser.parse_args()
    stale = []
    for path in args.files:
        text = path.read_text(encoding="utf-8")
        new = MARKED.sub(lambda match: f"{match[1]}{make_table(match[2])}{match[3]}", text)
        if new != text:
            stale.append(path)
            if not args.check:
                path.write_text(new, encoding="utf-8")
    print("stale:" if args.check else "changed:", *stale or ["nothing"], file=sys.stderr)
    if args.check:
        sys.exit(bool(stale))
    from lib.plots import plot, plot_ranking, plot_text  # matplotlib: not for tables alone

    for result in sorted(RESULTS.glob("fit-*.json")):
        if not result.stem.endswith("quick"):
            plot(result.stem, ROOT / "docs" / f"loss-{result.stem.removeprefix('fit-')}.svg")
    if result := load_text():
        plot_text(result, ROOT / "docs" / "text-arms.svg")
    if (RESULTS / "ranking.json").exists() and (result := load("ranking"))["comparisons"]:
        plot_ranking(result, ROOT / "docs" / "ranking.svg")


if __name__ == "__main__":
    main()
