"""The embedded demo data set: which Debian packages depend on, recommend or suggest which."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wals_gpu.data.interactions import Interactions, as_interactions
from wals_gpu.datasets._items import in_column_order


@dataclass(frozen=True)
class DebianPackages:
    """Dependencies among the packages of a Debian release, as implicit feedback.

    Attributes
    ----------
    interactions : Interactions
        (U, I) = (31,176, 7,366) with 222,096 entries. "Users" are packages, "items" the packages that they name;
        value 3 for Depends and Pre-Depends, 2 for Recommends, 1 for Suggests. Ids are package names.
    items : Table
        ``item_id``, ``summary`` (one line, to show), ``text`` ("name: summary. description", to embed), all strings.
        The first I rows are the columns of the matrix, in order; the other 36,116 are packages that some package
        names but that have too few entries to be in the matrix: items for cold starts.
    provenance : str
        Where the data come from, how they were made, and what may be done with them.
    """

    interactions: Interactions
    items: pa.Table
    provenance: str


def load_debian_packages() -> DebianPackages:
    """Load the embedded Debian data set; needs no network and takes a fraction of a second.

    Returns
    -------
    DebianPackages
        The licence of the texts is that of the packages: see ``provenance``.
    """
    folder = resources.files("wals_gpu.datasets")
    interactions = as_interactions(_read_table((folder / "debian_packages_interactions.parquet").read_bytes()))
    raw = _read_table((folder / "debian_packages_items.parquet").read_bytes())
    name, summary, description = raw["item_id"], raw["summary"], raw["description"]
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(name, ": ", summary, ". ", description, ""))
    items = pa.table({"item_id": name, "summary": summary, "text": text})
    provenance = (folder / "debian_packages.md").read_text(encoding="utf-8")
    assert interactions.item_ids is not None
    return DebianPackages(interactions, in_column_order(items, interactions.item_ids), provenance)


def _read_table(content: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(content))
