"""docs/production.md does what it says: its Python, its script through three nights, its DAG and its manifest."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from wals_gpu import WALS
from wals_gpu.cli.entry import main, make_parser
from wals_gpu.cli.nightly import REFUSED
from wals_gpu.publishing import ModelFolder

PAGE = (Path(__file__).parents[2] / "docs" / "production.md").read_text("utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def of_command(line):
    """A command line of ours that stands in quotes, a file or a manifest, understood."""
    words = line if isinstance(line, list) else shlex.split(line)
    assert words[0] == "wals-gpu"
    return make_parser().parse_args(words[1:])


@pytest.mark.filterwarnings("ignore::wals_gpu.ParameterWarning")
def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks("python"):
        if "airflow" not in block:
            exec(compile(block, "production.md", "exec"), namespace)
    assert (tmp_path / "model" / "README.md").exists()


@pytest.fixture
def home(tmp_path):
    """What the script needs: settings, and our command on the path."""
    (tmp_path / "settings.json").write_text(json.dumps({"factors": 8, "iterations": 5, "num_threads": 1}))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "wals-gpu"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m wals_gpu "$@"\n')
    command.chmod(0o755)
    (tmp_path / "nightly.sh").write_text(blocks("bash")[0])
    return tmp_path


def make_plays(path, days, seed=1):
    rng = np.random.default_rng(seed)
    time = np.sort(rng.uniform(0, 30, 6000))
    user = rng.integers(0, 200, 6000)
    item = np.where(rng.random(6000) < 0.8, rng.integers(0, 20, 6000) * 3 + user % 3, rng.integers(0, 60, 6000))
    table = pd.DataFrame({"user_id": user, "item_id": item, "time": time})[time < days]
    table.drop_duplicates(["user_id", "item_id"]).to_parquet(path)


def night(home):
    environment = os.environ | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "WALS_HOME": str(home)}
    done = subprocess.run(
        ["bash", home / "nightly.sh", home / "plays.parquet"], env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def test_the_script_through_three_nights(home, capsys):
    """A good one, a bad one that is refused, and the way back from what should not have been published."""
    folder = ModelFolder(home / "models")
    make_plays(home / "plays.parquet", 24)
    status, out, err = night(home)
    assert (status, err) == (0, "") and "is no model before" in out
    first, lists = folder.current, (home / "lists.parquet").read_bytes()
    assert len(pd.read_parquet(home / "lists.parquet")) == 20 * WALS.load(home / "models").n_users

    make_plays(home / "plays.parquet", 26)
    good = (home / "settings.json").read_text()
    (home / "settings.json").write_text(json.dumps(json.loads(good) | {"objective": "wals", "regularization": 50.0}))
    status, out, err = night(home)
    assert status == REFUSED == 3 and "does not hold" in out and "nightly: refused" in err
    assert folder.current == first and (home / "lists.parquet").read_bytes() == lists

    (home / "settings.json").write_text(good)
    status, out, err = night(home)
    assert status == 0 and folder.current != first and (home / "lists.parquet").read_bytes() != lists
    assert main(["rollback", str(home / "models")]) == 0 and folder.current == first
    assert f"is {first} now" in capsys.readouterr().out
    decisions = [run["decision"] for run in folder.runs()]
    assert decisions == ["published", "refused", "published", "rolled back"]


def test_the_lines_for_cron_and_the_script_are_valid(home):
    subprocess.run(["bash", "-n", home / "nightly.sh"], check=True)
    (line,) = [line for line in PAGE.splitlines() if "/srv/wals/nightly.sh" in line]
    assert re.match(r"(\S+\s+){5}/srv/wals/nightly\.sh \S+\.parquet >> \S+$", line)


def airflow_or_a_stand_in(monkeypatch):
    """Airflow itself where it is installed; else what the page uses of it."""
    made = []
    try:
        from airflow.providers.standard.operators.bash import BashOperator
        from airflow.sdk import DAG  # noqa: F401
    except ImportError:

        class Dag:
            def __init__(self, dag_id, **options):
                self.dag_id, self.options = dag_id, options

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        class BashOperator:
            def __init__(self, **options):
                vars(self).update(options, downstream=[])
                made.append(self)

            def __rshift__(self, other):
                self.downstream.append(other.task_id)

        parts = "airflow", "airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators"
        for name in (*parts, "airflow.sdk", "airflow.providers.standard.operators.bash"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["airflow.sdk"].DAG = Dag
        sys.modules["airflow.providers.standard.operators.bash"].BashOperator = BashOperator
    return BashOperator, made


def test_the_dag(monkeypatch):
    airflow_or_a_stand_in(monkeypatch)
    (text,) = [block for block in blocks("python") if "airflow" in block]
    namespace = {"__name__": "nightly_dag"}
    exec(compile(text, "nightly_dag.py", "exec"), namespace)
    fit, lists = namespace["fit"], namespace["lists"]
    options = of_command(fit.bash_command)
    assert str(options.out) == "models" and options.publish_if.metrics == ["ndcg@20"]
    of_command(lists.bash_command)
    skipped = fit.skip_on_exit_code
    assert skipped in (REFUSED, [REFUSED]) and fit.cwd == lists.cwd
    assert "lists" in str(getattr(fit, "downstream_task_ids", None) or fit.downstream)


def test_the_manifest():
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("yaml")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and re.fullmatch(r"(\S+ ){4}\S+", spec["schedule"])
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never", "a policy of failures needs it"
    (rule,) = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and REFUSED in rule["onExitCodes"]["values"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    options = of_command(container["command"] + container["args"])
    assert options.threads == int(container["resources"]["requests"]["cpu"])
    assert options.warm_start == options.out and options.publish_if.comparisons[0].other == "yesterday"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert f"assert night < {limit} * 2**30" in PAGE
