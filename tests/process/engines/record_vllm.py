"""Record the names and signatures of vLLM that its plugins meet: `python record_vllm.py FOLDER VERSION > vllm.json`.

FOLDER is an unpacked wheel; it is read and not imported, so that it needs none of its dependencies.
"""

import ast
import json
import sys
from pathlib import Path

MODULES = (
    "vllm.device_allocator",
    "vllm.device_allocator.cumem",
    "vllm.device_allocator.sleep_mode_backend",
    "vllm.v1.worker.worker_base",
)
CLASSES = ("MemAllocator", "CuMemAllocator", "SleepModeBackend", "SleepModeBackendFactory", "WorkerBase")
WORKERS = ("vllm.v1.worker.gpu_worker", "vllm.v1.worker.lora_model_runner_mixin", "vllm.compilation.cudagraph_pool")
VALUES = ("DEFERRABLE_TAGS", "SleepModeState", "instance", "default_tag", "_registry", "cumem_available")

Record = dict[str, dict[str, str]]


def module_file(folder: Path, module: str) -> Path:
    path = folder.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def signature(function: ast.FunctionDef) -> str:
    """Return a method's parameters with their defaults, without types, and what it is decorated with."""
    arguments = function.args
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    words = [
        one.arg if default is None else f"{one.arg}={ast.unparse(default)}"
        for one, default in zip(arguments.args, defaults, strict=True)
    ]
    marks = [f"@{ast.unparse(mark)} " for mark in function.decorator_list]
    return "".join(marks) + f"({', '.join(words)})"


def _values(body: list[ast.stmt]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in body:
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
        for target in targets:
            if isinstance(target, ast.Name) and target.id in VALUES and value is not None:
                found.setdefault(target.id, ast.unparse(value))
    return found


def record(folder: Path) -> Record:
    """Return, by module or class, what is public in it, as text."""
    found: Record = {}
    for module in MODULES:
        tree = ast.parse(module_file(folder, module).read_text())
        found[module] = _values(tree.body)
        for kind in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in CLASSES):
            methods = {
                node.name: signature(node)
                for node in kind.body
                if isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__")
            }
            if kind.name == "WorkerBase":
                methods = {"__init__": methods["__init__"]}
            found[f"{module}.{kind.name}"] = _values(kind.body) | methods
    return found


def tags(folder: Path) -> list[str]:
    """Return the tags that workers allocate under."""
    calls = (
        node
        for module in WORKERS
        for node in ast.walk(ast.parse(module_file(folder, module).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("memory_pool", "memory_pool_context"))
    )
    words = (word for call in calls for word in (*call.args, *(one.value for one in call.keywords)))
    return sorted({word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    recorded = {"version": sys.argv[2], "tags": tags(folder), "names": record(folder)}
    sys.stdout.write(json.dumps(recorded, indent=2) + "\n")
