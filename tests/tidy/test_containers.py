"""That deploy/container and deploy/kubernetes are valid by the published schemas, and say what the code and the image do."""

import copy
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from compose_spec import PyCompose, PyOptions

from tests.tidy.manifests import (
    COMPOSE,
    DOCKERFILE,
    MANIFESTS,
    Container,
    documents,
    image_environment,
    image_says,
    of_compose,
    of_kubernetes,
    pods,
)
from tests.tidy.test_house import ROOT
from vrambroker.broker.cli import app
from vrambroker.broker.config import SYSTEM_RUN_DIR
from vrambroker.broker.core.limits import GIB
from vrambroker.broker.settings import PREFIX, Sources
from vrambroker.broker.sizes import parse_size

# It comes without types.
kubernetes_validate: Any = importlib.import_module("kubernetes_validate")
# The first that has a claim's `resource.k8s.io/v1`, and the newest that the validator knows.
VERSIONS = ("1.34.0", kubernetes_validate.latest_version())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTAINERS = [*of_kubernetes(), *of_compose()]
OURS = [container for container in CONTAINERS if container.is_ours]
DAEMONS = [container for container in CONTAINERS if container.is_daemon]


def _name(container: Container) -> str:
    return f"{container.where}-{container.name}"


def _parsed(words: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of a command line as `broker` would read them, and run nothing; raises for unknown ones."""
    group: Any = typer.main.get_command(app)
    options: dict[str, Any] = group.commands[words[0]].make_context(words[0], list(words[1:])).params
    return options


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_knows_every_field(path: Path, version: str) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_field_that_kubernetes_does_not_know_would_be_noticed(version: str) -> None:
    (job,) = (one for path in MANIFESTS for one in documents(path) if one["kind"] == "Job")
    wrong = copy.deepcopy(job)
    wrong["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="restartPolicies"):
        kubernetes_validate.validate(wrong, version, strict=True)


def _compose(text: str) -> PyCompose:
    return PyOptions(apply_merge=True).from_yaml(text)


def test_compose_knows_every_key() -> None:
    _compose(COMPOSE.read_text())


def test_a_key_that_compose_does_not_know_would_be_noticed() -> None:
    with pytest.raises(ValueError, match="mem_limits"):
        _compose(COMPOSE.read_text().replace("mem_limit:", "mem_limits:"))


def test_the_dockerfile_passes_a_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_is_made_of_what_is_there() -> None:
    text = DOCKERFILE.read_text()
    for line in text.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), f"there is no {source}"
    assert "[broker,cuda]" in text
    assert {"broker", "cuda"} <= PROJECT["optional-dependencies"].keys()


def test_the_image_starts_the_command_as_a_numbered_user() -> None:
    (entry,), (arguments,), (user,) = image_says("ENTRYPOINT"), image_says("CMD"), image_says("USER")
    assert (entry, arguments) == ('["broker"]', '["serve"]')
    assert all(part.isdecimal() and int(part) > 0 for part in user.split(":"))
    assert image_environment()["VRAMBROKER_RUN_DIR"] == str(SYSTEM_RUN_DIR)


@pytest.mark.parametrize("container", OURS, ids=_name)
def test_a_container_of_ours_has_this_version(container: Container) -> None:
    assert container.image == f"vrambroker:{PROJECT['version']}"


@pytest.mark.parametrize("container", DAEMONS, ids=_name)
def test_a_daemons_options_are_real_ones(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    _parsed(container.command)
    ours = {name: value for name, value in container.environment.items() if name.startswith(PREFIX)}
    for name, value in {**image_environment(), **ours}.items():
        monkeypatch.setenv(name, value)
    settings = Sources.of({}, None).read()
    assert settings.device == "cuda:0"
    assert settings.run_dir == SYSTEM_RUN_DIR


@pytest.mark.parametrize("container", DAEMONS, ids=_name)
def test_a_daemon_has_the_memory_that_it_parks_in(container: Container) -> None:
    requested, limit = container.memory_bytes
    assert requested == limit, "what is parked can't be reclaimed, so it is not to be lent to others"
    assert limit >= parse_size(container.environment["VRAMBROKER_HOST_BUDGET"], "host_budget") + GIB


@pytest.mark.parametrize("container", DAEMONS, ids=_name)
def test_probes_ask_for_this_containers_daemon(container: Container) -> None:
    assert len(container.probes) == (1 if container.where == COMPOSE.name else 3)
    for program, *words in container.probes:
        assert program == "broker"
        assert words[0] == "health"
        assert _parsed(tuple(words))["own"]


@pytest.mark.parametrize("container", CONTAINERS, ids=_name)
def test_daemons_and_workers_are_one_user_and_see_one_folder(container: Container) -> None:
    assert container.mounts == (str(SYSTEM_RUN_DIR),)
    if container.name != "folder":
        assert container.user == image_says("USER")[0]


@pytest.mark.parametrize("container", CONTAINERS, ids=_name)
def test_no_container_has_privileges(container: Container) -> None:
    spec: dict[str, Any] = container.spec
    assert "privileged" not in str(spec)
    if container.where == COMPOSE.name:
        assert spec["cap_drop"] == ["ALL"]
        assert "cap_add" not in spec
        assert spec["security_opt"] == ["no-new-privileges:true"]
        return
    context = spec["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["capabilities"].get("add", []) == (["CHOWN", "FOWNER"] if container.name == "folder" else [])
    assert context["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_pod_takes_no_namespace_of_the_node_but_the_daemons_pids(path: Path) -> None:
    for pod in pods(path):
        taken = {key for key in ("hostPID", "hostIPC", "hostNetwork") if pod.get(key)}
        assert taken == ({"hostPID"} if path.name == "daemonset.yaml" else set())
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_service_named_like_us_adds_no_variables_to_a_daemons() -> None:
    """The kubelet would set variables that begin like settings, and those that are not known are refused."""
    ours = [pod for path in MANIFESTS for pod in pods(path) if f"vrambroker:{PROJECT['version']}" in str(pod)]
    assert len(ours) == 2
    assert [pod.get("enableServiceLinks") for pod in ours] == [False, False]


def test_a_sidecar_is_there_before_the_workers_and_sees_their_processes() -> None:
    (pod,) = pods(ROOT / "deploy" / "kubernetes" / "sidecar.yaml")
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert "startupProbe" in sidecar
    assert pod["shareProcessNamespace"] is True
    claims = [one["resources"]["claims"] for one in (sidecar, *pod["containers"])]
    assert claims == [[{"name": one["name"]} for one in pod["resourceClaims"]]] * 3
