"""What deploy/container and deploy/kubernetes say, as tests read it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.tidy.test_house import ROOT

MANIFESTS = tuple(sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml")))
DOCKERFILE = ROOT / "deploy" / "container" / "Dockerfile"
COMPOSE = ROOT / "deploy" / "container" / "compose.yaml"
IMAGE = "vrambroker:"
_SUFFIXES = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container of a pod, or a service of the compose file, in the same words."""

    where: str
    name: str
    image: str
    command: tuple[str, ...]
    environment: dict[str, str]
    probes: tuple[tuple[str, ...], ...]
    user: str
    mounts: tuple[str, ...]
    memory_bytes: tuple[int, ...] = ()
    spec: Document = field(default_factory=dict[str, Any])

    @property
    def is_ours(self) -> bool:
        return self.image.startswith(IMAGE)

    @property
    def is_daemon(self) -> bool:
        return self.is_ours and self.command[:1] == ("serve",)


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def pods(path: Path) -> Iterator[Document]:
    """Yield the specification of each pod that a file makes."""
    for document in documents(path):
        spec = document.get("spec", {})
        pod = spec if document["kind"] == "Pod" else spec.get("template", {}).get("spec", {})
        if "containers" in pod:
            yield pod


def of_kubernetes() -> list[Container]:
    return [
        _of_pod(path, pod, spec)
        for path in MANIFESTS
        for pod in pods(path)
        for spec in (*pod.get("initContainers", ()), *pod["containers"])
    ]


def of_compose() -> list[Container]:
    return [_of_service(name, spec) for name, spec in yaml.safe_load(COMPOSE.read_text())["services"].items()]


def size_bytes(text: str) -> int:
    """Return a quantity of memory, of Kubernetes or of compose."""
    found = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    assert found is not None, text
    return int(found[1]) * _SUFFIXES.get(found[2], 1)


def image_says(word: str) -> list[str]:
    """Return what the instructions of one kind say in the last stage of the Dockerfile, continued lines joined."""
    lines = re.sub(r"\\\n", " ", DOCKERFILE.read_text()).splitlines()
    last = max(at for at, line in enumerate(lines) if line.startswith("FROM "))
    return [line.removeprefix(word + " ") for line in lines[last:] if line.startswith(word + " ")]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in image_says("ENV") for pair in line.split())


def _of_pod(path: Path, pod: Document, spec: Document) -> Container:
    context = {**pod.get("securityContext", {}), **spec["securityContext"]}
    memory = spec["resources"]
    command: list[str] = spec["command"] if "command" in spec else spec["args"]
    return Container(
        where=path.name,
        name=spec["name"],
        image=spec["image"],
        command=tuple(command),
        environment={one["name"]: one["value"] for one in spec.get("env", ())},
        probes=tuple(tuple(spec[key]["exec"]["command"]) for key in spec if key.endswith("Probe")),
        user=f"{context['runAsUser']}:{context['runAsGroup']}",
        mounts=tuple(one["mountPath"] for one in spec["volumeMounts"]),
        memory_bytes=tuple(size_bytes(memory[key]["memory"]) for key in ("requests", "limits") if key in memory),
        spec=spec,
    )


def _of_service(name: str, spec: Document) -> Container:
    probe: tuple[str, ...] = tuple(spec["healthcheck"]["test"][1:]) if "healthcheck" in spec else ()
    return Container(
        where=COMPOSE.name,
        name=name,
        image=spec["image"],
        command=tuple(spec["command"]),
        environment=spec.get("environment", {}),
        probes=(probe,) if probe else (),
        user=spec["user"],
        mounts=tuple(volume.split(":")[1] for volume in spec["volumes"]),
        memory_bytes=tuple(size_bytes(spec[key]) for key in ("mem_reservation", "mem_limit") if key in spec),
        spec=spec,
    )
