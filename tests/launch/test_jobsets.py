"""The manifests for GKE: by the schema, consistent in themselves, and with a command that train.py takes."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import pytest
import yaml

from tests.house import ROOT
from tests.launch.jobset_schema import JOBSET, mistakes

MANIFESTS = sorted((ROOT / "launch").glob("gke_*.yaml"))


def load(path: Any) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def job(manifest: dict[str, Any]) -> dict[str, Any]:
    [replicated] = manifest["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    [only] = job(manifest)["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_a_jobset(path):
    manifest = load(path)
    assert mistakes(manifest, JOBSET) == []
    pod, names = job(manifest)["template"]["spec"], {volume["name"] for volume in job(manifest)["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(manifest)["volumeMounts"]} == names
    # A pod failure policy is allowed with restartPolicy Never only, and names a container that is there.
    [rule] = job(manifest)["podFailurePolicy"]["rules"]
    assert pod["restartPolicy"] == "Never" and rule["onExitCodes"]["containerName"] == container(manifest)["name"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_mistake_ends_the_jobset_and_everything_else_restarts_it(path):
    manifest = load(path)
    [rule] = job(manifest)["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In" and rule["onExitCodes"]["values"] == [2]
    [policy] = manifest["spec"]["failurePolicy"]["rules"]
    assert policy["action"] == "FailJobSet" and policy["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert job(manifest)["backoffLimit"] == 0 and manifest["spec"]["failurePolicy"]["maxRestarts"] >= 20
    # A pod that exits with 0 has done its part for good: a stopped run must not.
    assert "--stopped_exit_code=75" in container(manifest)["args"][0]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_command_starts_the_run_on_every_pod(path):
    manifest = load(path)
    [script] = container(manifest)["args"]
    sourced, _, started = script.partition(" && exec ")
    assert container(manifest)["command"] == ["bash", "-c"] and started and "\n" not in script  # signals reach Python
    assert (ROOT / sourced.removeprefix("source ").strip()).is_file()
    words = shlex.split(started)
    assert words[:2] == ["python", "train.py"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
    assert (ROOT / flags["config"].split(":")[0]).is_file() and flags["workdir"].startswith("gs://")
    assert job(manifest)["parallelism"] == job(manifest)["completions"]
    if "num_processes" in flags:
        name, worker = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"][0]["name"]
        host, port = flags["coordinator"].split(":")
        assert host == f"{name}-{worker}-0-0.{manifest['spec']['network']['subdomain']}"
        assert {"containerPort": int(port)} in container(manifest)["ports"]
        assert int(flags["num_processes"]) == job(manifest)["parallelism"]
        assert flags["process_id"] == "$JOB_COMPLETION_INDEX"
    else:
        assert "google.com/tpu" in container(manifest)["resources"]["limits"]  # found by the TPU's own variables


def test_the_schema_refuses_what_is_none():
    right = load(MANIFESTS[0])
    for change, line in (
        (lambda m: m.update(kind="Job"), ".kind: found 'Job', expected one of ('JobSet',)"),
        (lambda m: m["spec"].pop("replicatedJobs"), ".spec.replicatedJobs: missing"),
        (lambda m: m["spec"]["failurePolicy"].update(maxRestart=3), ".spec.failurePolicy.maxRestart: unknown field"),
        (lambda m: job(m).update(parallelism="4"), ".spec.replicatedJobs[0].template.spec.parallelism: found '4', expected int"),
        (lambda m: job(m)["template"]["spec"].update(restartPolicy="Always"), "restartPolicy: found 'Always'"),
        (lambda m: m["metadata"].update(name="Sere_1"), ".metadata.name: found 'Sere_1'"),
    ):
        wrong = copy.deepcopy(right)
        change(wrong)
        [found] = mistakes(wrong, JOBSET)
        assert line in found
