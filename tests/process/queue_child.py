"""What the other end of a queue does in a process of its own; it knows torch and nothing of a broker."""

from typing import Any

import torch


def add_one(there: Any, back: Any) -> None:
    """Add one to what comes, in place, and say what it was."""
    weights = there.get(timeout=50)["weights"]
    before = weights.mean().item()
    weights.add_(1)
    if weights.is_cuda:
        # What the sender reads next is read on a stream of its own.
        torch.cuda.synchronize()
    back.put(before)
    there.get(timeout=50)
