"""What `import vrambroker.client` brings along, and what it does not."""

import subprocess
import sys

HEAVY = ("torch", "grpc", "google", "numpy", "typer", "rich", "uvloop", "asyncio", "vrambroker.v1")

ALLOWED = {
    "vrambroker.broker",
    "vrambroker.broker.core",
    "vrambroker.broker.core.errors",
}

PROGRAM = f"""
import sys
import vrambroker.client
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(*loaded)
print(*sorted(name for name in sys.modules if name.startswith("vrambroker.broker")))
"""


def test_importing_the_client_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    heavy, broker = done.stdout.splitlines()
    assert heavy == ""
    assert set(broker.split()) <= ALLOWED
    assert done.stderr == ""


def test_the_folder_is_no_package_of_its_own() -> None:
    import importlib.util

    import vrambroker.client

    specification = importlib.util.spec_from_file_location("client", vrambroker.client.__file__)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except ImportError as error:
        assert "vrambroker.client" in str(error)
    else:
        raise AssertionError("the guard let it pass")


def test_every_error_is_exported() -> None:
    import vrambroker.client
    from vrambroker.broker.core import errors

    expected = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.BrokerError)
    }
    assert expected <= set(vrambroker.client.__all__)
