"""What `broker status` prints, at every width: names whole, and a table where that fits."""

import pytest
from rich.console import Console

from vrambroker.broker.fitted_table import UNBOUNDED_CELLS, FittedTable, output_console

WORDS = ("trainer-rank-0", "5416", "optimizer-states", "resident", "12.0 MiB", "kv_cache", "2.0 MiB")


def table() -> FittedTable:
    made = FittedTable("session", "pid", "tag", "state", "device", right=("device",))
    made.add_row("trainer-rank-0", "5416", "optimizer-states", "resident", "12.0 MiB")
    made.add_row("", "", "kv_cache", "resident", "2.0 MiB")
    made.add_row("another", "5417")
    return made


def printed(width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as shown:
        console.print(table())
    return [line.rstrip() for line in shown.get().splitlines()]


@pytest.mark.parametrize("width", [28, 40, 56, 80, UNBOUNDED_CELLS])
def test_nothing_is_cut_short_and_no_line_is_too_long(width: int) -> None:
    lines = printed(width)
    for word in WORDS:
        assert any(word in line for line in lines), lines
    assert "…" not in "".join(lines)
    assert max(map(len, lines)) <= width


def test_what_fits_is_a_table_with_one_line_for_each_row() -> None:
    lines = printed(80)
    assert lines[0].split() == ["session", "pid", "tag", "state", "device"]
    assert len(lines) == 4


def test_what_does_not_fit_is_entries() -> None:
    assert printed(40) == [
        "session trainer-rank-0  pid 5416",
        "  tag optimizer-states  state resident",
        "  device 12.0 MiB",
        "  tag kv_cache  state resident",
        "  device 2.0 MiB",
        "session another  pid 5417",
    ]


def test_a_name_longer_than_a_line_goes_on_in_the_next() -> None:
    assert "".join(line.strip() for line in printed(12)).count("optimizer-states") == 1


def test_what_is_piped_is_not_fitted_unless_columns_are_asked_for() -> None:
    assert output_console(None).width == UNBOUNDED_CELLS
    assert output_console("40").width < UNBOUNDED_CELLS
