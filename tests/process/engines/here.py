"""Where a scenario takes place: on `host`, or, with SCENARIO_DEVICE=cuda, on a GPU, with 32 times the memory."""

import os

ON_GPU = os.environ.get("SCENARIO_DEVICE") == "cuda"
# The unit of its sizes: a GPU's smallest frame is so much more than one of `host`.
MIB = (32 if ON_GPU else 1) << 20


def use_device() -> None:
    """Have torch make tensors there. Not every side's first process has torch."""
    if ON_GPU:
        import torch

        torch.set_default_device("cuda")
