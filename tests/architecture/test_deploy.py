"""The files under `deploy/`: valid for those that read them, and of one mind among themselves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.support.connections import of_a_runner
from tests.support.manifests import DEPLOY, KUBERNETES, Object, commands, compose, objects, the, with_pods
from tests.support.shell import ROOT
from zart.cli.command import code_of
from zart.cli.database import NO_DATABASE
from zart.cli.main import answer
from zart.cli.runner import app as runner
from zart.config import WorkerConfig
from zart.duration import seconds_of
from zart.runner.options import RunnerOptions
from zart.runner.queues import STATES

_KUBERNETES_VERSION = "1.31"
_SCHEMAS = ROOT / "tests" / "schemas"

# Of a PostgreSQL with the default max_connections, less those kept for superusers.
_CONNECTIONS = 100 - 3
_OTHERS = 2  # `zart migrate`, `zart metrics`

# An endpoint's word on a worker that stands still comes within so many seconds.
_FROZEN = 15


def _file(each: Object) -> str:
    return str(each.file.relative_to(KUBERNETES))


@pytest.mark.parametrize("each", objects(), ids=_file)
def test_an_object_is_valid(each: Object) -> None:
    schema = _SCHEMAS / f"{each.kind.lower()}.json"
    if schema.exists():
        jsonschema.validate(each.data, json.loads(schema.read_text()))
    else:
        kubernetes_validate.validate(each.data, _KUBERNETES_VERSION, strict=True)


def test_compose_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", commands().values(), ids=commands().keys())
def test_a_command_line_lacks_nothing_but_the_database(
    line: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    program, *arguments = line
    code = code_of(runner, program, arguments) if program == "zart-runner" else answer(arguments)
    assert code == 2
    assert capsys.readouterr().err == f"{program}: {NO_DATABASE}\n"


# Kubernetes: one object fits the others


@pytest.mark.parametrize("each", with_pods(), ids=_file)
def test_a_pod_has_no_rights(each: Object) -> None:
    of_pod = each.pod["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    user = re.search(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert (of_pod["runAsUser"], of_pod["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert each.pod["automountServiceAccountToken"] is False
    assert each.container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(each.container["resources"]["requests"])
    assert "memory" in each.container["resources"]["limits"]


@pytest.mark.parametrize("each", with_pods(), ids=_file)
def test_a_pod_reads_what_is_there(each: Object) -> None:
    wanted = [entry["valueFrom"]["secretKeyRef"] for entry in each.container["env"]]
    secret = the("Secret")
    assert [(secret.name, key) for key in secret.data["stringData"]] == [(w["name"], w["key"]) for w in wanted]
    settings = the("ConfigMap")
    for source in each.container.get("envFrom", []):
        assert source == {"configMapRef": {"name": settings.name}}
        used = set(re.findall(r"\$\((\w+)\)", " ".join(each.container["args"])))
        assert used == set(settings.data["data"])


def test_those_that_watch_and_scale_name_the_pods_that_are_there() -> None:
    deployments = {each.name: each for each in objects() if each.kind == "Deployment"}
    assert the("HorizontalPodAutoscaler").spec["scaleTargetRef"]["name"] == "zart-runner"
    assert the("ScaledObject").spec["scaleTargetRef"]["name"] == "zart-runner"
    for each in deployments.values():
        labels = {"app.kubernetes.io/name": each.name}
        assert each.spec["selector"]["matchLabels"] == each.spec["template"]["metadata"]["labels"] == labels
    assert the("PodDisruptionBudget").spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": "zart-runner"}
    (chosen,) = the("PodMonitor").spec["selector"]["matchExpressions"]
    assert set(chosen["values"]) == set(deployments)
    (endpoint,) = the("PodMonitor").spec["podMetricsEndpoints"]
    for each in deployments.values():
        (port,) = each.container["ports"]
        assert port["name"] == endpoint["port"]
        assert any(word.endswith(f"port={port['containerPort']}") for word in each.container["args"])


def test_the_queries_ask_for_states_that_there_are() -> None:
    queries = " ".join(trigger["metadata"]["query"] for trigger in the("ScaledObject").spec["triggers"])
    asked = re.findall(r'state=~"([a-z|]+)"', queries)
    assert asked
    assert {state for text in asked for state in text.split("|")} <= set(STATES)


def test_what_scales_leaves_the_replicas_alone() -> None:
    assert "replicas" not in the("Deployment", "zart-runner").spec


def test_every_file_is_in_a_kustomization_and_every_resource_is_a_file() -> None:
    named = set[Any]()
    for file in KUBERNETES.rglob("kustomization.yaml"):
        for resource in yaml.safe_load(file.read_text())["resources"]:
            path = (file.parent / resource).resolve()
            assert path.exists(), f"{file}: {resource}"
            named.add(path)
    assert {each.file for each in objects()} - named == {KUBERNETES / "secret.example.yaml"}


# Kubernetes: the numbers


def _settings() -> dict[str, str]:
    found: dict[str, str] = the("ConfigMap").data["data"]
    return found


def test_a_pod_is_given_the_time_that_its_steps_are_given_and_some_more() -> None:
    grace = the("Deployment", "zart-runner").pod["terminationGracePeriodSeconds"]
    assert grace >= seconds_of(_settings()["SHUTDOWN_TIMEOUT"], "SHUTDOWN_TIMEOUT") + 5


def test_the_runner_mends_a_blocked_worker_before_the_pod_is_killed_for_it() -> None:
    container = the("Deployment", "zart-runner").container
    live, ready, start = (container[f"{name}Probe"] for name in ("liveness", "readiness", "startup"))
    config = WorkerConfig(lease_timeout=_settings()["LEASE_TIMEOUT"])
    stall = RunnerOptions(dsn="", app="", config=config).stall_seconds
    assert live["periodSeconds"] * (live["failureThreshold"] - 1) > max(stall, _FROZEN)
    assert ready["periodSeconds"] * ready["failureThreshold"] <= _FROZEN
    assert start["periodSeconds"] * start["failureThreshold"] >= 60
    assert all(probe["timeoutSeconds"] <= probe["periodSeconds"] for probe in (live, ready, start))


def test_the_largest_fleet_has_connections_in_a_rollout_too() -> None:
    settings = _settings()
    _, each = of_a_runner(int(settings["PROCS"]), int(settings["TRX_POOL_SIZE"]), endpoint=True)
    deployment = the("Deployment", "zart-runner")
    surge = deployment.spec["strategy"]["rollingUpdate"]["maxSurge"]
    assert deployment.spec["minReadySeconds"] >= deployment.pod["terminationGracePeriodSeconds"]
    draining = deployment.spec["strategy"]["rollingUpdate"]["maxUnavailable"] + surge
    for most in (the("HorizontalPodAutoscaler").spec["maxReplicas"], the("ScaledObject").spec["maxReplicaCount"]):
        assert (most + surge + draining) * each + _OTHERS <= _CONNECTIONS


# Compose


def test_compose_gives_the_runner_the_time_that_its_steps_are_given_and_some_more() -> None:
    service = compose()["services"]["runner"]
    (given,) = (word.partition("=")[2] for word in service["command"] if word.startswith("--shutdown-timeout="))
    assert seconds_of(service["stop_grace_period"], "") >= seconds_of(given, "") + 5


def test_prometheus_reads_what_compose_runs() -> None:
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (port,) = (word.partition("=")[2] for word in compose()["services"]["runner"]["command"] if "--http-port=" in word)
    targets = [target for config in scraped for part in config["static_configs"] for target in part["targets"]]
    assert targets[0] == f"runner:{port}"
    assert {target.partition(":")[0] for target in targets} <= set(compose()["services"])


def test_what_compose_mounts_is_there() -> None:
    services = compose()["services"].values()
    mounts = [mount.split(":")[0] for service in services for mount in service.get("volumes", [])]
    for mount in mounts:
        if mount.startswith("."):
            assert (DEPLOY / mount).exists(), mount
        else:
            assert mount in compose()["volumes"]
