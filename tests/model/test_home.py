"""A path that begins with "~", as in a shell."""

from __future__ import annotations

import numpy as np

from wals_gpu import WALS
from wals_gpu.export import export
from wals_gpu.report import write_report


def test_a_tilde_is_the_home_folder_wherever_something_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    model = WALS(factors=2, num_threads=1).fit(np.eye(3), checkpoint_dir="~/checkpoint")
    model.save("~/model")
    assert np.array_equal(WALS.load("~/model").item_factors, model.item_factors)
    write_report("~/page.html", model=model)
    export(model, "~/lists", to="parquet")
    assert {file.name for file in (tmp_path / "home").iterdir()} == {"model", "page.html", "lists", "checkpoint"}
    assert {file.name for file in tmp_path.iterdir()} == {"home"}
    assert (tmp_path / "home" / "model" / "README.md").exists()
