"""What callers use of the original's `utils`."""

from vrambroker.client.saver.compatible import change_env, get_binary_path_from_package

__all__ = ["change_env", "get_binary_path_from_package"]
