"""That docs/operations.md says of the options what the model of them says, and the command line has the same ones."""

import inspect
import re

import pytest

from tests.tidy.options_table import PAGE, renewed
from tests.tidy.test_house import ROOT
from vrambroker.broker.adapters.metrics.metered_core import MeteredCore
from vrambroker.broker.adapters.metrics.page import Given, Page
from vrambroker.broker.adapters.metrics.tally import Tally
from vrambroker.broker.core.broker import Broker
from vrambroker.broker.core.ids import Instant
from vrambroker.broker.core.limits import Limits
from vrambroker.broker.options import OPTIONS
from vrambroker.broker.service_cli import serve
from vrambroker.broker.settings import CONFIG_VARIABLE, FOREIGN_VARIABLES, PREFIX, Settings

METRIC = re.compile(r"`(vrambroker_\w+)`")
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


def test_every_metric_is_in_the_table_and_the_table_has_no_other() -> None:
    limits = Limits(capacity_bytes=1, frame_sizes_bytes=(1,), host_budget_bytes=0, arena_file_bytes=1)
    given = Given(
        device="host:0",
        version="1",
        capacity_bytes=1,
        host_budget_bytes=0,
        spill_budget_bytes=0,
        outside_bytes=lambda: 0,
        history_missing_lines=lambda: 7,
        now=lambda: Instant(0),
    )
    page = Page(given, Tally(capacity_bytes=1), MeteredCore(Broker(limits)))
    told = {family.name + {"counter": "_total", "info": "_info"}.get(family.type, "") for family in page.collect()}
    assert set(METRIC.findall(PAGE.read_text())) == told
