"""A trainer as verl and OpenRLHF have one: it moves its states to the host and back itself, and is never paused.

Started by `broker run --tag`, so what it has on the device is leased, and goes back as it moves away. On `host` a numpy
array is what torch's memory on the CPU is beside a GPU: no lease.
"""

import sys
from typing import Any

import numpy as np
import torch
from here import MIB, use_device  # type: ignore[import-not-found]  # beside this script


class Trainer:
    """Parameters and the optimizer's state, on the device or in `away`."""

    def __init__(self) -> None:
        self.version = 0
        self.there: dict[str, torch.Tensor] = {"params": torch.zeros(3 * MIB), "moments": torch.zeros(3 * MIB)}
        self.away: dict[str, Any] = {}

    def offload(self, *names: str) -> str:
        """FSDP's `.to("cpu")`, DeepSpeed's `offload_states`."""
        for name in names or tuple(self.there):
            self.away[name] = np.array(self.there.pop(name).cpu().numpy())
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
            torch.cuda.empty_cache()
        return "offloaded"

    def reload(self, *names: str) -> str:
        for name in names or tuple(self.away):
            self.there[name] = torch.tensor(self.away.pop(name))
        return "reloaded"

    def train(self) -> str:
        assert self.there["params"].eq(self.version).all(), "parameters are lost"
        assert self.there["moments"].eq(2 * self.version).all(), "the optimizer's state is lost"
        # Gradients, and with them the peak.
        grads = torch.full((3 * MIB,), 3.0)
        self.version += 1
        self.there["params"].fill_(self.version)
        self.there["moments"].fill_(2 * self.version)
        del grads
        return f"trained {self.version}"

    def send(self) -> str:
        """The weights, bucket by bucket, each a copy on the device."""
        sent = {self.there["params"][begin : begin + MIB].clone().max().item() for begin in range(0, 3 * MIB, MIB)}
        return f"sent {sent.pop():g}"


def main() -> None:
    use_device()
    trainer = Trainer()
    print("ready", flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        answer: str = getattr(trainer, command)(*words)
        print(answer, flush=True)


if __name__ == "__main__":
    main()
