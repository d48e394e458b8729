"""That docs/operations.md says of the options what the model of them says, and the command line has the same ones."""

import inspect
import re

import pytest

from tests.tidy.options_table import PAGE, renewed
from tests.tidy.test_house import ROOT
from vrambroker.broker.options import OPTIONS
from vrambroker.broker.service_cli import serve
from vrambroker.broker.settings import CONFIG_VARIABLE, FOREIGN_VARIABLES, PREFIX, Settings

VARIABLE = re.compile(rf"\b{PREFIX}[A-Z_]+\b")


def test_the_table_of_options_is_made_from_the_model() -> None:
    page = PAGE.read_text()
    assert renewed(page) == page, "run python -m tests.tidy.options_table"


def test_every_option_is_one_of_the_command_line_the_file_and_the_environment() -> None:
    of_command = set(inspect.signature(serve).parameters) - {"config"}
    assert of_command == set(Settings.model_fields) == set(OPTIONS)


@pytest.mark.parametrize("folder", ["broker", "client", "native", "tests"])
def test_every_variable_that_is_read_somewhere_is_known_to_a_daemon(folder: str) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE} | FOREIGN_VARIABLES
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in {".py", ".cpp", ".sh"} and path.name != "test_settings.py":
            unknown = set(VARIABLE.findall(path.read_text())) - known
            assert not unknown, f"{path} reads {unknown}, which a daemon would refuse to be started with"
