"""A trainer as slime, miles and AReaL have one: all that it allocates is paused with it (TMS_INIT_ENABLE, and a backup)."""

# The private parts are what these callers use.
# pyright: reportPrivateUsage=false

import sys
from collections.abc import Callable

import torch
from here import MIB, use_device  # type: ignore[import-not-found]  # beside this script
from torch_memory_saver import torch_memory_saver as saver


def untracked(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What DeepEP's buffers are made in: memory that other GPUs reach stays where it is (slime, miles)."""
    if saver._impl is None:
        saver._ensure_initialized()
    assert saver._impl is not None
    cdll = saver._impl._binary_wrapper.cdll
    before = cdll.tms_get_interesting_region()
    cdll.tms_set_interesting_region(False)
    try:
        return make()
    finally:
        cdll.tms_set_interesting_region(before)


class Trainer:
    """Its state, and what the three do with it."""

    def __init__(self) -> None:
        saver.hook_mode = "preload"  # AReaL
        saver.memory_margin_bytes = 1 << 30  # miles
        self.version = 0
        self.params = torch.nn.Parameter(torch.zeros(3 * MIB))
        self.moments = torch.zeros(3 * MIB)
        # Megatron's, as miles patches it.
        with saver.region(tag="grad_buffer", enable_cpu_backup=False):
            self.grads = torch.zeros(MIB)
        with saver.region(tag="param_buffer", enable_cpu_backup=False):
            self.gathered = torch.zeros(MIB)
        self.comm = untracked(lambda: torch.ones(1000))
        self.pinned = torch.empty(0)
        self.addresses = self.places()

    def places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (self.params, self.moments, self.grads, self.gathered, self.comm)]

    def sleep(self) -> str:
        """slime: the process groups are gone by now."""
        saver.pause()
        assert self.comm.eq(1).all()
        return "asleep"

    def wake(self) -> str:
        saver.resume()
        return "awake"

    def train(self) -> str:
        """A step: the state must be what the last one left."""
        assert self.places() == self.addresses, "something moved"
        assert self.params.eq(self.version).all(), "parameters are lost"
        assert self.moments.eq(2 * self.version).all(), "the optimizer's state is lost"
        assert self.grads.eq(0).all(), "gradients hold what they held before"
        self.grads.fill_(3)
        self.version += 1
        with torch.no_grad():
            self.params.fill_(self.version)
        self.moments.fill_(2 * self.version)
        return "trained"

    def save(self) -> str:
        """A checkpoint, which is taken awake, and the copy that updates come from."""
        with saver.disable():
            self.pinned = self.params.detach().clone()
        return f"saved {self.pinned[0].item():g}"

    def update(self) -> str:
        """Send the weights while all of this process is asleep, bucket by bucket, from its own copy."""
        sent = 0.0
        with saver.disable():
            for begin in range(0, self.pinned.numel(), MIB):
                there = self.pinned[begin : begin + MIB].clone()
                sent = max(sent, there.max().item())
        return f"sent {sent:g}"

    def read(self) -> str:
        """slime's other way: out of the backup, where it lies."""
        backup = saver.get_cpu_backup(self.params.detach(), zero_copy=True)
        assert backup is not None
        # Everything has left by now, and what other GPUs reach has not.
        assert self.comm.eq(1).all()
        return f"read {backup.min().item():g} {backup.max().item():g}"

    def sleep_miles(self) -> str:
        """Parameters are made again from their shards, so their buffer is as little kept as the gradients'."""
        saver.pause("grad_buffer")
        saver.pause("param_buffer")
        saver.pause("default")
        return "asleep"

    def wake_miles(self) -> str:
        for tag in ("default", "param_buffer", "grad_buffer"):
            saver.resume(tag)
        self.gathered.copy_(self.params.detach()[:MIB])
        return "awake"

    def update_miles(self) -> str:
        """The parameters' buffer alone comes back, is made again, sent, and goes."""
        saver.resume("param_buffer")
        assert self.gathered.eq(0).all()
        with saver.disable():
            self.gathered.copy_(self.pinned[:MIB])
            sent = self.gathered.clone().max().item()
        saver.pause("param_buffer")
        return f"sent {sent:g}"

    def offloaded_save(self) -> str:
        """AReaL: what can't be done asleep wakes the whole engine, and puts it to sleep again."""
        saver.resume()
        with torch.no_grad():
            told = f"saved {self.params.max().item():g}"
        saver.pause()
        return told


def main() -> None:
    use_device()
    trainer = Trainer()
    print("ready", flush=True)
    for line in sys.stdin:
        answer: str = getattr(trainer, line.strip())()
        print(answer, flush=True)


if __name__ == "__main__":
    main()
