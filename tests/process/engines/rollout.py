"""A rollout engine as SGLang 0.5.23 is one to its memory saver: an engine, and a scheduler that it spawns.

Memory under three tags, released and resumed by HTTP there and by lines here. On `host`, so what is captured into graphs is
a plain tensor.
"""

import multiprocessing
import sys
from multiprocessing.connection import Connection

from here import MIB, use_device  # type: ignore[import-not-found]  # beside this script

TAGS = ("kv_cache", "weights", "cuda_graph")


class Scheduler:
    """What each rank of the engine does."""

    def __init__(self) -> None:
        import torch
        from torch_memory_saver import torch_memory_saver

        self.saver = torch_memory_saver
        self.offloaded: set[str] = set()
        with self.saver.region(tag="weights", enable_cpu_backup=False):
            self.weights = torch.zeros(5 * MIB)
            self.buffers = {"inv_freq": torch.linspace(0, 1, 1000)}
        # A draft model's, with enable_draft_weights_cpu_backup.
        with self.saver.region(tag="weights", enable_cpu_backup=True):
            self.draft = torch.linspace(1, 2, MIB // 4)
        with self.saver.region(tag="kv_cache", enable_cpu_backup=False):
            self.kv = torch.zeros(5 * MIB)
        # The page tables of graphs, and what a graph's replay reads from its pool.
        with self.saver.region(tag="cuda_graph", enable_cpu_backup=False):
            self.pages = torch.zeros(1000)
        with self.saver.region(tag="cuda_graph", enable_cpu_backup=True):
            self.captured = torch.linspace(2, 3, 1000)
        self.addresses = self.places()
        self.stash: dict[str, torch.Tensor] = {}

    def places(self) -> list[int]:
        tensors = (self.weights, self.buffers["inv_freq"], self.draft, self.kv, self.pages, self.captured)
        return [tensor.data_ptr() for tensor in tensors]

    def release(self, *tags: str) -> str:
        """`release_memory_occupation`."""
        named = tags or TAGS
        self.offloaded.update(named)
        if "kv_cache" in named:
            self.saver.pause("kv_cache")
        if "weights" in named:
            self.stash = {name: buffer.clone() for name, buffer in self.buffers.items()}
            self.saver.pause("weights")
        if "cuda_graph" in named:
            self.saver.pause("cuda_graph")
        return "released"

    def resume(self, *tags: str) -> str:
        """`resume_memory_occupation`."""
        named = tags or TAGS
        for tag in named:
            self.offloaded.remove(tag)
        if "cuda_graph" in named:
            self.saver.resume("cuda_graph")
        if "weights" in named:
            self.saver.resume("weights")
            for name, buffer in self.buffers.items():
                buffer.copy_(self.stash.pop(name))
        if "kv_cache" in named:
            self.saver.resume("kv_cache")
        return "resumed"

    def update(self, version: str) -> str:
        """`update_weights_from_tensor`: all of them, while the KV cache may be away."""
        self.weights.fill_(float(version))
        return "updated"

    def generate(self) -> str:
        """Read and write everything; tell which weights it was."""
        import torch

        assert not self.offloaded
        assert self.places() == self.addresses, "something moved"
        assert self.kv.eq(0).all(), "the cache holds what it held before"
        self.kv.fill_(1)
        self.pages.fill_(1)
        assert self.kv.eq(1).all()
        assert self.buffers["inv_freq"].equal(torch.linspace(0, 1, 1000)), "a buffer is lost"
        assert self.draft.equal(torch.linspace(1, 2, MIB // 4)), "the draft model is lost"
        assert self.captured.equal(torch.linspace(2, 3, 1000)), "a graph's memory is lost"
        assert self.weights.min() == self.weights.max()
        return f"weights {self.weights[0].item():g}"


def schedule(pipe: Connection) -> None:
    """Serve until told to end. The imports are over by the time that it is told to load."""
    import torch
    import torch_memory_saver

    assert torch_memory_saver.torch_memory_saver.enabled
    assert torch.is_tensor(torch.empty(0))
    assert pipe.recv() == ["load"]
    use_device()
    scheduler = Scheduler()
    pipe.send("ready")
    while True:
        command, *words = pipe.recv()
        if command == "end":
            return
        answer: str = getattr(scheduler, command)(*words)
        pipe.send(answer)


def main() -> None:
    from torch_memory_saver import configure_subprocess

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=schedule, args=(theirs,))
    with configure_subprocess():
        process.start()
    theirs.close()
    assert "torch" not in sys.modules, "the engine's own process needs none"
    for line in sys.stdin:
        ours.send(line.split())
        if line.strip() == "end":
            break
        print(ours.recv(), flush=True)
    process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
