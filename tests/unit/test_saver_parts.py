"""What stands in for torch_memory_saver, in parts: environment variables, tags, and how Python comes to load us first."""

import subprocess
import sys
from pathlib import Path

import pytest

from vrambroker.broker import launch
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.client.discovery import Endpoint
from vrambroker.client.native import preload_path
from vrambroker.client.saver import SHIM_FOLDER, STARTUP_FOLDER
from vrambroker.client.saver.settings import beginning, releases_at_pause, retains_backup, timeout_s
from vrambroker.client.saver.tags import Tags, label_of

DEADLINE_S = 30.0


def test_nothing_is_leased_unless_the_environment_says_so() -> None:
    settings = beginning({})
    assert (settings.interesting, settings.tag, settings.contents, settings.backend) == (
        False,
        "default",
        "zero",
        "pinned",
    )
    assert not retains_backup({})
    assert not releases_at_pause({})
    assert timeout_s({}) > 0


@pytest.mark.parametrize(
    ("environment", "contents"),
    [
        ({"TMS_INIT_ENABLE": "yes"}, "zero"),
        ({"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "TRUE"}, "keep"),
        ({"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_DISK_BACKUP": "true"}, "keep"),
        ({"TMS_INIT_ENABLE": "1", "TMS_INIT_ENABLE_CPU_BACKUP": "no", "VRAMBROKER_CONTENTS": "drop"}, "drop"),
        ({"VRAMBROKER_TAG": "trainer"}, "keep"),
        ({"VRAMBROKER_TAG": "trainer", "VRAMBROKER_CONTENTS": "drop"}, "drop"),
    ],
)
def test_what_a_process_begins_with(environment: dict[str, str], contents: str) -> None:
    settings = beginning(environment)
    assert settings.interesting
    assert settings.tag == environment.get("VRAMBROKER_TAG", "default")
    assert settings.contents == contents


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TMS_INIT_ENABLE", ""),
        ("TMS_INIT_ENABLE", "on"),
        ("TMS_INIT_ENABLE_CPU_BACKUP", "2"),
        ("TMS_INIT_ENABLE_DISK_BACKUP", "True"),
        ("TMS_INIT_CPU_BACKUP_BACKEND", "disk"),
        ("TMS_RETAIN_CPU_BACKUP", "y"),
        ("VRAMBROKER_CONTENTS", "zero"),
        ("VRAMBROKER_PAUSE", "now"),
        ("VRAMBROKER_TIMEOUT", "soon"),
        ("VRAMBROKER_TIMEOUT", "nan"),
        ("VRAMBROKER_TIMEOUT", "-1"),
    ],
)
def test_a_value_that_is_none_is_named(name: str, value: str) -> None:
    environment = {name: value}
    with pytest.raises(InvalidArgument, match=f"{name}='{value}': expected"):
        for read in (beginning, retains_backup, releases_at_pause, timeout_s):
            read(environment)


class FakeLeases:
    """Tags that are paused and hold what the test says."""

    def __init__(self) -> None:
        self.paused: set[str] = set()
        self.bytes: dict[str, int] = {}

    def is_paused(self, tag: str) -> bool:
        return tag in self.paused

    def allocated_bytes(self, tag: str) -> int:
        return self.bytes.get(tag, 0)

    def resume(self, *tags: str, timeout: float) -> dict[str, bool]:
        assert timeout == 0
        self.paused.difference_update(tags)
        return dict.fromkeys(tags, True)


def test_what_is_allocated_under_a_paused_tag_has_another_that_goes_with_it() -> None:
    leases = FakeLeases()
    tags = Tags(leases)
    assert tags.all_of("kv") == tags.all_of(None) == ()
    assert tags.to_allocate("kv") == tags.to_allocate("kv") == "kv"
    leases.paused, leases.bytes = {"kv"}, {"kv": 1}
    assert tags.to_allocate("kv") == tags.to_allocate("kv") == "kv+2"
    assert tags.to_allocate("weights") == "weights"
    assert tags.all_of("kv") == ("kv", "kv+2")
    assert tags.all_of(None) == ("kv", "kv+2", "weights")
    leases.paused = set()
    assert tags.to_allocate("kv") == "kv"


def test_a_process_that_sleeps_often_needs_no_more_tags() -> None:
    leases = FakeLeases()
    tags = Tags(leases)
    tags.to_allocate("all")
    leases.bytes = {"all": 1}
    for _ in range(5):
        leases.paused = set(tags.all_of("all"))
        assert tags.to_allocate("all") == "all+2"
        leases.paused = set()
        assert tags.to_allocate("all") == "all"


def test_graphs_share_a_tag_as_they_share_a_pool() -> None:
    leases = FakeLeases()
    tags = Tags(leases)
    first = tags.for_graphs("cuda_graph", "keep", (0, 1))
    assert tags.for_graphs("cuda_graph", "keep", (0, 1)) == first == "cuda_graph"
    assert tags.for_graphs("cuda_graph", "keep", (0, 2)) == "cuda_graph+2"
    # What a graph's pool has is no other allocation's.
    assert tags.to_allocate("cuda_graph") == "cuda_graph+3"
    leases.paused = {"cuda_graph"}
    assert tags.for_graphs("cuda_graph", "keep", (0, 1)) == "cuda_graph+4"
    assert len(tags.all_of("cuda_graph")) == 4


def test_any_text_is_a_tag() -> None:
    assert label_of("nemo_rl_megatron_inference_model") == "nemo_rl_megatron_inference_model"
    odd = [label_of(tag) for tag in ("a b", "a/b", "a+b", "", "ü" * 200, "x" * 57)]
    assert len(set(odd)) == len(odd)
    assert all(0 < len(label) <= 56 for label in odd)


def test_a_program_is_given_what_it_needs_and_keeps_its_own() -> None:
    endpoint = Endpoint(device="host:3", directory=Path("/run/x/host:3"))
    wishes = launch.Wishes(name="trainer", tag=None, contents=None, torch_memory_saver=True)
    made = launch.environment_for(wishes, (endpoint,), {"HOME": "/h", "PYTHONPATH": "/mine"})
    assert made == {
        "HOME": "/h",
        "PYTHONPATH": f"{STARTUP_FOLDER}:{SHIM_FOLDER}:/mine",
        "VRAMBROKER_NAME": "trainer",
        "VRAMBROKER_DEVICE": "host:3",
        "VRAMBROKER_RUN_DIR": "/run/x",
        "LD_PRELOAD": preload_path(),
    }
    # A program that is run by one that is run.
    assert launch.environment_for(wishes, (endpoint,), made) == made
    theirs = launch.environment_for(wishes, (endpoint,), {"LD_PRELOAD": "/their.so  /other.so"})["LD_PRELOAD"]
    assert theirs == f"{preload_path()}:/their.so:/other.so"
    other = Endpoint(device="host:4", directory=Path("/run/y/host:4"))
    several = launch.environment_for(wishes, (endpoint, other), {})
    assert not {"VRAMBROKER_DEVICE", "VRAMBROKER_RUN_DIR"} & several.keys()


def python(source: str, *folders: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={"PYTHONPATH": ":".join(str(folder) for folder in folders), **variables},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    return done.stdout + done.stderr


def test_the_sitecustomize_that_was_there_is_loaded_as_ever(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.customized = __file__\n")
    source = "import sys, sitecustomize; print(sys.customized == sitecustomize.__file__)"
    assert python(source, STARTUP_FOLDER, tmp_path) == "True\n"
    assert python("print('runs')", STARTUP_FOLDER) == "runs\n"


def test_torch_is_watched_for_and_looks_as_ever(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("here = True\n")
    source = "import torch; print(type(torch.__loader__).__name__, torch.__spec__.loader is torch.__loader__)"
    assert python(source, STARTUP_FOLDER, tmp_path) == "SourceFileLoader True\n"
    # It is no torch, so what follows can't work: the program runs all the same, and is told.
    told = python(source, STARTUP_FOLDER, tmp_path, VRAMBROKER_TAG="all")
    assert told.startswith("SourceFileLoader True\n")
    assert "nothing is leased here" in told


def test_only_who_asks_for_it_finds_the_stand_in() -> None:
    source = "import importlib.util as u; found = u.find_spec('torch_memory_saver'); print(found and found.origin)"
    assert str(SHIM_FOLDER) not in python(source)
    assert python(source, SHIM_FOLDER).startswith(str(SHIM_FOLDER))
