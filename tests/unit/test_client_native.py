"""What the binding makes of arguments and of the library's answers; the library itself is not loaded here."""

import pytest

from vrambroker.broker.adapters.error_detail import to_detail
from vrambroker.broker.core import errors
from vrambroker.client import native


@pytest.mark.parametrize(
    ("timeout_s", "expected"),
    [
        (0, 0),
        (0.0001, 1),
        (1, 1000),
        (1.0005, 1001),
        (float("inf"), (1 << 32) - 1),
        (1e9, (1 << 32) - 1),
        (10**400, (1 << 32) - 1),
    ],
)
def test_only_zero_is_at_once(timeout_s: float, expected: int) -> None:
    assert native.milliseconds(timeout_s) == expected


@pytest.mark.parametrize("timeout_s", [-1, -0.001, float("nan"), float("-inf"), "5", None, [1]])
def test_a_timeout_that_is_none_is_refused(timeout_s: object) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        native.milliseconds(timeout_s)
    assert caught.value.argument == "timeout"


@pytest.mark.parametrize("text", ["a", "kv_cache", "x" * 64, "v1.2:3@4+5-6", "0"])
def test_labels_that_are_right(text: str) -> None:
    assert native.check_label(text, "tag") == text.encode()


@pytest.mark.parametrize(
    "text", ["", "x" * 65, "a b", "a/b", "a\0b", "ä", "a\n", "\udcff", "x" * 100_000, 3, None, b"a", ["a"]]
)
def test_labels_that_are_not(text: object) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        native.check_label(text, "tag")
    assert caught.value.argument == "tag"
    assert len(caught.value.message) < 400


def test_policies() -> None:
    assert [native.contents_number(name) for name in ("keep", "drop", "zero")] == [1, 2, 3]
    with pytest.raises(errors.InvalidArgument):
        native.contents_number("kept")


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (native.Status.INVALID, errors.InvalidArgument),
        (native.Status.WRONG_STATE, errors.WrongState),
        (native.Status.NOT_QUIESCENT, errors.NotQuiescent),
        (native.Status.UNAVAILABLE, errors.BrokerUnavailable),
        (native.Status.LOST, errors.BrokerLost),
        (native.Status.DEVICE, errors.DriverFailed),
        (native.Status.VERSION, errors.VersionMismatch),
        (native.Status.FORKED, errors.WrongState),
        (native.Status.UNKNOWN_TAG, errors.UnknownTag),
    ],
)
def test_every_status_of_the_library_is_an_error(status: native.Status, expected: type[errors.BrokerError]) -> None:
    raised = native.exception_of(status, name="", message="", subject="kv_cache", detail=b"")
    assert type(raised) is expected
    assert raised.message


def test_no_status_is_left_out() -> None:
    covered = set(native.Status) - {native.Status.OK}
    for status in covered:
        assert isinstance(
            native.exception_of(status, name="X", message="m", subject="s", detail=b""), errors.BrokerError
        )


def test_a_refusal_is_the_daemons_own_error() -> None:
    sent = errors.OutOfDeviceMemory(
        message="no room for 3 bytes",
        requested_bytes=3,
        free_bytes=1,
        capacity_bytes=2,
        holders=(errors.Holder(session="trainer", tag="params", state="resident", size_bytes=2),),
    )
    raised = native.exception_of(
        native.Status.REFUSED,
        name="OutOfDeviceMemory",
        message=sent.message,
        subject="",
        detail=to_detail(sent).SerializeToString(),
    )
    assert isinstance(raised, errors.OutOfDeviceMemory)
    assert (raised.requested_bytes, raised.free_bytes, raised.holders) == (3, 1, sent.holders)
    assert str(raised) == sent.message


def test_a_refusal_without_detail_is_still_of_its_class() -> None:
    raised = native.exception_of(native.Status.REFUSED, name="QuotaExceeded", message="m", subject="", detail=b"")
    assert type(raised) is errors.QuotaExceeded
    unknown = native.exception_of(native.Status.REFUSED, name="Holder", message="m", subject="", detail=b"")
    assert type(unknown) is errors.DriverFailed
