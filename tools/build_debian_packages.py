"""Build the embedded demo data set from the index files that `apt-get update` leaves on a Debian machine.

    apt-get -o Acquire::Languages=en update                  # also fetches the long descriptions
    python tools/build_debian_packages.py --suite bookworm   # reads /var/lib/apt/lists, writes wals_gpu/datasets

Or name the three files (plain, .xz, .gz, .bz2, .lz4 or .zst) of any mirror or snapshot of the archive:

    python tools/build_debian_packages.py --release InRelease --packages Packages.xz --translations Translation-en.xz

Every file is checked against the SHA-256 in the Release file. The same files and the same pyarrow version give the same
bytes. docs/datasets.md says what is kept, and why.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# The strongest relation counts when a package names the same item in several fields.
RELATIONS = {"Pre-Depends": 3, "Depends": 3, "Recommends": 2, "Suggests": 1}
MIN_ITEM_ENTRIES = 5
MIN_USER_ENTRIES = 3
# About 128 tokens, which is what text encoders are usually given. Whole descriptions would not fit into MAX_BYTES.
MAX_DESCRIPTION = 512
# A first paragraph shorter than this is often a mere "Features:", so that the next one is needed too.
MIN_DESCRIPTION = 80
MAX_BYTES = 3_000_000

DATA_FOLDER = Path(__file__).resolve().parent.parent / "wals_gpu" / "datasets"
# Debian Policy, chapter 7: name, optional architecture qualifier, optional version in parentheses.
RELATION_PATTERN = re.compile(r"\s*([a-z0-9][a-z0-9+.\-]*)(?::[a-z0-9\-]+)?\s*(?:\([<>=]+[^()]+\))?\s*")

PROVENANCE = """\
# Debian packages: which packages a package depends on, recommends or suggests

## Source

The public package index of Debian {version} ({codename}), component main, architecture {architecture},
as of the Release file dated {date}:

    {packages_sha256}  {packages_name}
    {translations_sha256}  {translations_name}

Files of any mirror or snapshot of the archive with these SHA-256 sums (uncompressed) are the same files.
Made from them by tools/build_debian_packages.py.

## Contents

- `debian_packages_interactions.parquet`: user_id (package), item_id (package that it names), value (3 Depends or
  Pre-Depends, 2 Recommends, 1 Suggests). {users} x {items}, {entries} entries, after removing items with fewer than
  {min_item} and packages with fewer than {min_user} entries until nothing changes.
- `debian_packages_items.parquet`: item_id, summary, description (the first paragraph; the next ones too while there
  are fewer than {min_description} characters; cut after {max_description}). The {catalogue} packages that any other
  package names; {cold} of them are not in the interactions.

## Licence

The relations say which package names which, as the archive publishes it. The summaries and descriptions were written
by the maintainers of the packages and are part of their packaging (debian/control). They are NOT under the licence
of this project. All packages are from the component main, which by the Debian Social Contract holds only what may be
redistributed and modified under the Debian Free Software Guidelines. The copyright holders and the licence differ from
package to package and are stated in each package's debian/copyright (/usr/share/doc/PACKAGE/copyright where it is
installed); the licence of the packaging is often, but not always, that of the program. We know of no statement by
Debian that puts the index as a whole under one licence, and we give none. The texts are shortened, line breaks and
e-mail addresses removed, otherwise unchanged. Who passes the texts on and needs certainty should look up these terms,
or leave the items file out: the interactions do not need it. Debian is a registered trademark of Software in the
Public Interest, Inc.; this project is not affiliated with Debian.
"""


def read_bytes(path: Path) -> bytes:
    """Contents of a file, decompressed according to its extension."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    with pa.input_stream(str(path)) as stream:  # knows .bz2, .lz4 (what apt writes) and .zst
        return stream.read()


def read_stanzas(text: str) -> Iterator[dict[str, str]]:
    """Stanzas of a control file; a value keeps its continuation lines, joined by newlines."""
    for block in re.split(r"\n{2,}", text.strip("\n")):
        stanza: dict[str, str] = {}
        field = ""
        for line in block.split("\n"):
            if line[:1] in (" ", "\t"):
                stanza[field] += "\n" + line
            else:
                field, _, value = line.partition(":")
                stanza[field] = value.strip()
        yield stanza


def named_packages(relation: str) -> list[str]:
    """Names in a relation field, all alternatives included.

    >>> named_packages("libc6 (>= 2.34), python3:any, exim4 | mail-transport-agent")
    ['libc6', 'python3', 'exim4', 'mail-transport-agent']
    """
    terms = re.split(r"[,|]", relation)
    matches = [RELATION_PATTERN.fullmatch(term) for term in terms]
    if not all(matches):
        raise SystemExit(f"cannot read the relation {relation!r}")
    return [match[1] for match in matches]


def collect_entries(packages: dict[str, dict[str, str]]) -> dict[tuple[str, str], int]:
    """Value of each (package, named package), before filtering.

    Each alternative of a group counts: the maintainer named them all as suitable. A virtual package stands for the
    package that provides it if there is just one (perlapi-5.36.0 is perl-base), and is left out if there are several
    (any mail server), since it has no description; the alternative before it usually names a real package.
    Names that the index lacks, and a package naming itself, are left out.
    """
    providers = defaultdict(set)
    for name, stanza in packages.items():
        for virtual in named_packages(stanza["Provides"]) if "Provides" in stanza else ():
            providers[virtual].add(name)

    entries: dict[tuple[str, str], int] = {}
    for user, stanza in packages.items():
        for field, value in RELATIONS.items():
            for name in named_packages(stanza[field]) if field in stanza else ():
                candidates = {name} if name in packages else providers.get(name, set())
                if len(candidates) == 1 and user not in candidates:
                    (item,) = candidates
                    entries[user, item] = max(value, entries.get((user, item), 0))
    return entries


def keep_connected(entries: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    """Entries left when items and users with too few entries are removed until nothing changes."""
    while True:
        item_counts = Counter(item for _, item in entries)
        kept = {key: value for key, value in entries.items() if item_counts[key[1]] >= MIN_ITEM_ENTRIES}
        user_counts = Counter(user for user, _ in kept)
        kept = {key: value for key, value in kept.items() if user_counts[key[0]] >= MIN_USER_ENTRIES}
        if len(kept) == len(entries):
            return kept
        entries = kept


def split_description(description: str) -> tuple[str, str]:
    """Summary and beginning of a Description field, on one line each, without e-mail addresses."""
    summary, _, body = re.sub(r"<?[\w.+\-]+@[\w\-]+(\.[\w\-]+)+>?", "", description).partition("\n")
    beginning = ""
    for paragraph in re.split(r"^ \.\s*$", body, flags=re.MULTILINE):
        if len(beginning) < MIN_DESCRIPTION:
            beginning = " ".join(f"{beginning} {paragraph}".split())
    if len(beginning) > MAX_DESCRIPTION:
        beginning = beginning[: MAX_DESCRIPTION + 1].rsplit(" ", 1)[0]
    return " ".join(summary.split()), beginning


def write_parquet(columns: dict[str, object], path: Path, encodings: dict[str, str]) -> None:
    """Write one row group, without statistics, as small as zstd makes it; columns without encoding get a dictionary."""
    table = pa.table(columns)
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,  # 22 gains 0.03 %
        use_dictionary=[name for name in columns if name not in encodings],
        column_encoding=encodings,
        write_statistics=False,
        store_schema=False,
        row_group_size=len(table),
        data_page_size=1 << 26,
    )


def find_list(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"want exactly one file {pattern} in {folder}, found {len(found)}: see the top of this script")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, default=Path("/var/lib/apt/lists"), help="folder of apt's index files")
    parser.add_argument("--suite", default="bookworm", help="as in sources.list (default: bookworm)")
    parser.add_argument("--architecture", default="amd64", help="default: amd64")
    parser.add_argument("--release", type=Path, help="InRelease or Release file, instead of --lists")
    parser.add_argument("--packages", type=Path, help="Packages file, instead of --lists")
    parser.add_argument("--translations", type=Path, help="Translation-en file, instead of --lists")
    parser.add_argument("--out", type=Path, default=DATA_FOLDER, help="folder to write to (default: the package's)")
    options = parser.parse_args()

    prefix = f"*_dists_{options.suite}_"
    index_name = f"main/binary-{options.architecture}/Packages"
    texts_name = "main/i18n/Translation-en"
    release_path = options.release or find_list(options.lists, f"{prefix}*Release")
    index_path = options.packages or find_list(options.lists, f"{prefix}{index_name.replace('/', '_')}*")
    texts_path = options.translations or find_list(options.lists, f"{prefix}{texts_name.replace('/', '_')}*")

    release_text = read_bytes(release_path).decode()
    release = dict(re.findall(r"^(Version|Codename|Date): (.*)$", release_text, re.MULTILINE))
    contents, checksums = {}, {}
    for name, path in ((index_name, index_path), (texts_name, texts_path)):
        contents[name] = read_bytes(path)
        checksums[name] = hashlib.sha256(contents[name]).hexdigest()
        if not re.search(rf"^ {checksums[name]} +\d+ {name}$", release_text, re.MULTILINE):
            raise SystemExit(f"{path} is not the {name} that {release_path} lists")

    # A package in two versions (4 of 63,436 in bookworm) keeps the stanza that comes last.
    packages = {stanza["Package"]: stanza for stanza in read_stanzas(contents[index_name].decode())}
    texts = {
        stanza["Description-md5"]: stanza["Description-en"] for stanza in read_stanzas(contents[texts_name].decode())
    }
    all_entries = collect_entries(packages)
    entries = sorted(keep_connected(all_entries).items())
    catalogue = sorted({item for _, item in all_entries})
    descriptions = [
        split_description(texts.get(packages[item].get("Description-md5", ""), packages[item].get("Description", "")))
        for item in catalogue
    ]

    options.out.mkdir(parents=True, exist_ok=True)
    interactions = {
        "user_id": [user for (user, _), _ in entries],
        "item_id": [item for (_, item), _ in entries],
        "value": pa.array([value for _, value in entries], pa.float32()),
    }
    items = {
        "item_id": catalogue,
        "summary": [summary for summary, _ in descriptions],
        "description": [description for _, description in descriptions],
    }
    # Measured: the sorted user ids take 0.24 MB as plain strings under zstd, 0.37 MB as dictionary indices.
    write_parquet(interactions, options.out / "debian_packages_interactions.parquet", {"user_id": "PLAIN"})
    lengths_apart = "DELTA_LENGTH_BYTE_ARRAY"
    encodings = {"item_id": "DELTA_BYTE_ARRAY", "summary": lengths_apart, "description": lengths_apart}
    write_parquet(items, options.out / "debian_packages_items.parquet", encodings)
    counts = {
        "users": len(set(interactions["user_id"])),
        "items": len(set(interactions["item_id"])),
        "entries": len(entries),
        "catalogue": len(catalogue),
    }
    counts["cold"] = counts["catalogue"] - counts["items"]
    provenance = PROVENANCE.format(
        version=release["Version"],
        codename=release["Codename"],
        date=release["Date"],
        architecture=options.architecture,
        packages_name=index_name,
        packages_sha256=checksums[index_name],
        translations_name=texts_name,
        translations_sha256=checksums[texts_name],
        min_item=MIN_ITEM_ENTRIES,
        min_user=MIN_USER_ENTRIES,
        min_description=MIN_DESCRIPTION,
        max_description=MAX_DESCRIPTION,
        **{name: f"{count:,}" for name, count in counts.items()},
    )
    (options.out / "debian_packages.md").write_text(provenance, encoding="utf-8")

    size = sum(path.stat().st_size for path in options.out.glob("debian_packages_*.parquet"))
    print(f"{options.out}: {counts}, {size:,} bytes of Parquet")
    if size > MAX_BYTES:
        raise SystemExit(f"the Parquet files must not take more than {MAX_BYTES:,} bytes: lower MAX_DESCRIPTION")


if __name__ == "__main__":
    main()
