"""torch_memory_saver, on memory leased from vrambroker: what `import torch_memory_saver` finds when this folder is in front.

The whole of it is `vrambroker.client.saver`; docs/torch_memory_saver.md has what differs from the original.
"""

try:
    from vrambroker.client.saver.saver import TorchMemorySaver, configure_subprocess, torch_memory_saver
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "vrambroker":
        raise
    raise ImportError(
        "this torch_memory_saver is vrambroker's, which is not installed in this Python: install it here, "
        "or take its folder out of PYTHONPATH"
    ) from error

__all__ = ["TorchMemorySaver", "configure_subprocess", "torch_memory_saver"]
