"""What docs/distributed.md gives to Slurm and Kubernetes is valid as far as this machine can tell."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from wals_gpu.cli.entry import make_parser

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text("utf-8")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def options_of(words):
    """The command of ours in a line for torchrun, understood."""
    return make_parser().parse_args(words[words.index("wals_gpu") + 1 :])


def test_the_manifest_is_a_pytorchjob_that_runs_our_command():
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("yaml")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    policy = spec["elasticPolicy"]
    assert policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"] and policy["rdzvBackend"] == "c10d"
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"  # the operator looks for this name
    words = container["command"] + container["args"]
    assert all(isinstance(word, str) for word in words) and words[0] == "torchrun"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    options = options_of(words)
    assert options.resume and options.threads == int(container["resources"]["requests"]["cpu"])
    shared = container["volumeMounts"][0]["mountPath"]
    assert all(str(path).startswith(shared) for path in (*options.interactions, options.out, options.checkpoint_dir))


def test_the_script_for_slurm_is_one():
    (text,) = [block for block in blocks("bash") if block.startswith("#!")]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (command,) = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("srun")]
    words = shlex.split(command.replace("$SLURM_CPUS_PER_TASK", "32"))
    assert "torchrun" in words and options_of(words).resume
    assert "$SLURM_NNODES" in words and "$head:29400" in words
