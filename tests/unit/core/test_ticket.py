"""How a size is made up of frames."""

import pytest

from vrambroker.broker.core.ticket import bytes_of, compose


@pytest.mark.parametrize(
    ("size", "sizes", "parts"),
    [
        (1, (4,), {4: 1}),
        (4, (4,), {4: 1}),
        (5, (4,), {4: 2}),
        (64, (4, 16), {16: 4}),
        (65, (4, 16), {16: 4, 4: 1}),
        (31, (4, 16), {16: 2}),
        (27, (4, 16), {16: 1, 4: 3}),
        (3, (1, 4, 16), {1: 3}),
    ],
)
def test_as_many_of_the_largest_as_fit_then_smaller_ones(
    size: int, sizes: tuple[int, ...], parts: dict[int, int]
) -> None:
    assert compose(size, sizes) == parts
    assert size <= bytes_of(parts) < size + sizes[0]
