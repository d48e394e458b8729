"""Our side of vLLM's seams against what was recorded of the released package, and that against an installed one."""

import ast
import json
from importlib import metadata, util
from pathlib import Path

import pytest

from tests.process.engines import record_vllm
from vrambroker.client.vllm import allocator, plugin

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "tests" / "process" / "engines"
RECORDED = json.loads((ENGINES / "vllm.json").read_text())
NAMES: record_vllm.Record = RECORDED["names"]
CUMEM = "vllm.device_allocator.cumem.CuMemAllocator"
BACKEND = "vllm.device_allocator.sleep_mode_backend.SleepModeBackend"


def ours(file: str, name: str) -> dict[str, str]:
    """Return the methods of a class of ours as the record has those of vLLM."""
    tree = ast.parse((ROOT / "client" / "vllm" / file).read_text())
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {node.name: record_vllm.signature(node) for node in kind.body if isinstance(node, ast.FunctionDef)}


def test_the_allocator_has_all_that_workers_ask_of_theirs() -> None:
    methods = ours("allocator.py", "LeasedAllocator")
    asked = NAMES[CUMEM] | NAMES["vllm.device_allocator.MemAllocator"]
    for name in asked.keys() - {"instance", "default_tag", "get_instance"}:
        wanted = NAMES[CUMEM].get(name, asked[name])
        assert methods[name] == wanted, name


def test_the_backend_has_the_methods_of_its_interface() -> None:
    methods = ours("backend.py", "LeasedBackend")
    inherited = {"__init__"}
    for name, wanted in NAMES[BACKEND].items():
        if name not in inherited:
            assert methods[name] == wanted.replace("@abstractmethod ", ""), name


def test_the_tags_that_may_stay_asleep_are_theirs() -> None:
    assert repr(allocator.DEFERRABLE_TAGS) == NAMES["vllm.device_allocator"]["DEFERRABLE_TAGS"]
    assert set(RECORDED["tags"]) == {"kv_cache", "runtime", "weights", "workspace"}
    assert set(allocator.ZEROED_TAGS) < set(RECORDED["tags"])


def test_what_the_programs_of_these_tests_find_is_as_recorded() -> None:
    there = record_vllm.record(ENGINES / "vllm_seams")
    assert there.keys() == NAMES.keys()
    for kind, names in there.items():
        assert names.items() <= NAMES[kind].items(), kind
    assert there[BACKEND] == NAMES[BACKEND]


def test_vllm_finds_the_plugin_by_its_entry_point() -> None:
    (found,) = [one for one in metadata.entry_points(group="vllm.general_plugins") if one.name == "vrambroker"]
    assert found.load() is plugin.register


def test_an_installed_vllm_is_as_recorded() -> None:
    spec = util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("SKIPPED: no vLLM is installed")
    assert record_vllm.record(Path(spec.origin).parents[1]) == NAMES
