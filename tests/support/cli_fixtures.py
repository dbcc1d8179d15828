"""For tests of the command line: interactions, a model, and commands run in this process.

A module of tests has them by ``pytest_plugins = ["cli_fixtures"]``.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from commands import QUICK

from wals_gpu import cli


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """Twenty-four people of three tastes, twelve songs of three kinds; strings as ids, a count and a time."""
    rng = np.random.default_rng(5)
    rows = []
    for person in range(24):
        for song in range(12):
            same = person % 3 == song % 3
            if rng.random() < (0.8 if same else 0.1):
                rows.append((f"p{person:02}", f"s{song:02}", float(rng.integers(1, 9)), 1000 + len(rows)))
    names = ["user_id", "item_id", "count", "time"]
    table = pa.table({name: [row[c] for row in rows] for c, name in enumerate(names)})
    path = tmp_path_factory.mktemp("data") / "plays.parquet"
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def model(plays, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    assert cli.main(["fit", str(plays), "--out", str(path), *QUICK]) == 0
    return path


@pytest.fixture
def run(capsys):
    """Run a command; its exit status, standard output and standard error."""

    def run_command(*arguments):
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command
