"""The files under `deploy/`, read as what consumes them reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.shell import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"

_ENTRYPOINT = ["zart-runner"]
_METRIC = re.compile(r"zart_\w+")
_VARIABLE = re.compile(r"\$\((\w+)\)")


@dataclass(frozen=True, slots=True)
class Object:
    """One Kubernetes object, and the file that it is in."""

    file: Path
    data: Any

    @property
    def kind(self) -> str:
        return str(self.data["kind"])

    @property
    def name(self) -> str:
        return str(self.data["metadata"]["name"])

    @property
    def spec(self) -> Any:
        return self.data["spec"]

    @property
    def pod(self) -> Any:
        """The spec of its pods."""
        return self.spec["template"]["spec"]

    @property
    def container(self) -> Any:
        """The one container of its pods."""
        (container,) = self.pod["containers"]
        return container


def objects() -> list[Object]:
    """All objects, in the order of their files; kustomizations are none."""
    files = sorted(file for file in KUBERNETES.rglob("*.yaml") if file.name != "kustomization.yaml")
    return [Object(file, data) for file in files for data in yaml.safe_load_all(file.read_text())]


def the(kind: str, name: str = "") -> Object:
    """The one object of this kind, and of this name if there are several."""
    (found,) = (each for each in objects() if each.kind == kind and name in ("", each.name))
    return found


def with_pods() -> list[Object]:
    return [each for each in objects() if each.kind in ("Deployment", "Job")]


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def scaled_by() -> set[str]:
    """The metrics that the fleet is scaled by."""
    queries = [trigger["metadata"]["query"] for trigger in the("ScaledObject").spec["triggers"]]
    names = [each["external"]["metric"]["name"] for each in the("HorizontalPodAutoscaler").spec["metrics"][:1]]
    return set(_METRIC.findall(" ".join([*queries, *names])))


def commands() -> dict[str, list[str]]:
    """Each command line of zart's, by where it is."""
    settings: dict[str, str] = the("ConfigMap").data["data"]
    found = {str(each.file.relative_to(DEPLOY)): _command_of(each.container, settings) for each in with_pods()}
    for name, service in compose()["services"].items():
        if service["image"].startswith("zart:"):
            found[f"compose.yaml, {name}"] = [*service.get("entrypoint", _ENTRYPOINT), *service["command"]]
    return found


def _command_of(container: Mapping[str, Any], variables: Mapping[str, str]) -> list[str]:
    """What a container runs, variables replaced."""
    words = [*container.get("command", _ENTRYPOINT), *container.get("args", [])]
    return [_VARIABLE.sub(lambda found: variables[found[1]], word) for word in words]
