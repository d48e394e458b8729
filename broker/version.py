"""The version of this package, as the wheel says it; an uninstalled source tree has none."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("vrambroker")
    except PackageNotFoundError:
        return "0+uninstalled"


VERSION = _installed_version()
