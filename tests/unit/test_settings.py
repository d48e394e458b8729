"""What an operator says, from three places: who goes first, and what is refused by which name."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from vrambroker.broker.config import Config
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.settings import Rereading, Sources, config_of

PLAN = '[[phase]]\nname = "{}"\ntags = ["a/b"]\n'


def sources(
    monkeypatch: pytest.MonkeyPatch,
    *,
    said: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Sources:
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    return Sources.of(said or {}, file)


def toml(folder: Path, text: str) -> Path:
    file = folder / "broker.toml"
    file.write_text(text)
    return file


def refusal(monkeypatch: pytest.MonkeyPatch, **where: object) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        sources(monkeypatch, **where).read()  # type: ignore[arg-type]
    return caught.value


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path, 'capacity = "1GiB"\nhost_budget = "2GiB"\ncopy_ahead = "1s"\neager = "never"\n')
    environment = {"VRAMBROKER_HOST_BUDGET": "3GiB", "VRAMBROKER_COPY_AHEAD": "2s", "VRAMBROKER_KEEP_FREE": ""}
    read = sources(monkeypatch, said={"copy_ahead": "3s"}, environment=environment, file=file).read()
    assert (read.capacity, read.host_budget, read.copy_ahead) == ("1GiB", "3GiB", "3s")
    assert (read.eager, read.keep_free, read.outside_per_session, read.device) == (Eager.NEVER, None, "4GiB", "host")


def test_the_file_may_be_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, 'capacity = 67108864\ndevice = "host:7"\n')
    read = sources(monkeypatch, environment={"VRAMBROKER_CONFIG": str(file)}).read()
    assert (read.capacity, read.device) == ("67108864", "host:7")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ('capactiy = "1GiB"', "capactiy", "capacity"),
        ('host-budget = "1GiB"', "host-budget", "host_budget"),
        ("[spill]\ndir = '/'", "spill", "spill_dir"),
    ],
)
def test_an_unknown_key_is_refused_by_name_with_the_nearest_known_one(
    text: str, key: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path, text)
    error = refusal(monkeypatch, file=file)
    assert error.argument == key
    assert error.message == f"{file}: {key} is unknown: did you mean {nearest}?"


def test_an_unknown_key_unlike_any_is_refused_with_those_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "known are capacity, copy_ahead, device" in refusal(monkeypatch, file=toml(tmp_path, "zzzz = 1")).message


def test_an_unknown_variable_is_refused_and_a_workers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sources(monkeypatch, environment={"VRAMBROKER_TAG": "weights"}).read()
    error = refusal(monkeypatch, environment={"VRAMBROKER_CAPACTIY": "1GiB"})
    assert error.message == "the environment's VRAMBROKER_CAPACTIY is unknown: did you mean VRAMBROKER_CAPACITY?"


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("capacity", "64GB", "a number and one of B, KiB, MiB, GiB, TiB"),
        ("host_budget", "200ms", "a number and one of B, KiB, MiB, GiB, TiB"),
        ("keep_free", "-1", "a number and one of B, KiB, MiB, GiB, TiB"),
        ("copy_ahead", "200", "a number and one of ms, s, min"),
        ("copy_ahead", "2GiB", "a number and one of ms, s, min"),
        ("eager", "sometimes", "'auto', 'always' or 'never'"),
        ("device", "tpu:0", "host, host:N, cuda, cuda:N, N or a GPU's UUID"),
    ],
)
@pytest.mark.parametrize("place", ["command line", "environment", "file"])
def test_a_wrong_unit_is_refused_with_its_place_its_key_and_what_is_expected(
    key: str, text: str, expected: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"VRAMBROKER_{key.upper()}"
    file = toml(tmp_path, f'{key} = "{text}"')
    match place:
        case "command line":
            error, origin = refusal(monkeypatch, said={key: text}), f"--{key.replace('_', '-')}"
        case "environment":
            error, origin = refusal(monkeypatch, environment={variable: text}), variable
        case _:
            error, origin = refusal(monkeypatch, file=file), str(file)
    assert error.argument == key
    assert error.message.startswith(f"{key} {text!r}")
    assert error.message.endswith(f" ({origin})")
    assert expected in error.message


@pytest.mark.parametrize("text", ["capacity = true", "capacity = 1.5", 'capacity = ["1GiB"]', "copy_ahead = 200"])
def test_a_value_of_the_wrong_kind_is_refused_by_name(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(monkeypatch, file=toml(tmp_path, text)).argument == text.split()[0]


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, file=toml(tmp_path, 'capacity = "1GB"\nfoo = 1\n')).message
    assert "capacity" in message
    assert "foo is unknown" in message


@pytest.mark.parametrize("contents", [b"capacity = ", b"\xff"])
def test_a_file_that_is_no_toml_is_refused(contents: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broker.toml"
    file.write_bytes(contents)
    assert str(file) in refusal(monkeypatch, file=file).message


def test_a_file_that_can_not_be_read_is_told_with_the_option_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere.toml"
    error = refusal(monkeypatch, file=nowhere)
    assert (error.argument, error.message) == ("config", f"config can't be read: {nowhere}: No such file or directory")
    asked = sources(monkeypatch, said={"plan": tmp_path, "run_dir": tmp_path})
    with pytest.raises(InvalidArgument, match=f"plan can't be read: {tmp_path}: Is a directory") as caught:
        config_of(asked.read())
    assert asked.located(caught.value).message.endswith("(--plan)")


@pytest.mark.parametrize("value", ["true", "[1]", "{ a = 1 }", "1979-05-27"])
def test_a_size_of_another_type_is_told_what_a_size_is(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        "is not a size: a number and one of" in refusal(monkeypatch, file=toml(tmp_path, f"capacity = {value}")).message
    )


def test_a_capacity_beyond_the_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, 'capacity = "4096TiB"')
    asked = sources(monkeypatch, said={"run_dir": tmp_path}, file=file)
    with pytest.raises(InvalidArgument, match=r"is more than the .* GiB of device host:0") as caught:
        config_of(asked.read())
    assert caught.value.argument == "capacity"
    located = asked.located(caught.value)
    assert located.message.endswith(f" bytes ({file})")
    assert located.argument == "capacity"


def test_what_nobody_has_said_is_nobodys_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = InvalidArgument(message="why", argument="run_dir")
    assert sources(monkeypatch).located(error) is error


def begun(monkeypatch: pytest.MonkeyPatch, file: Path, folder: Path) -> tuple[Config, Rereading]:
    asked = sources(monkeypatch, said={"run_dir": folder, "capacity": "64MiB", "host_budget": "64MiB"}, file=file)
    settings = asked.read()
    return config_of(settings), Rereading(asked, settings)


def test_what_is_read_again_is_what_a_running_daemon_can_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format("train"))
    file = toml(tmp_path, f'plan = "{plan}"\ncapacity = "32MiB"\n')
    config, reread = begun(monkeypatch, file, tmp_path)
    plan.write_text(PLAN.format("generate"))
    file.write_text(f'plan = "{plan}"\ncopy_ahead = "1s"\neager = "always"\noutside_per_session = "1GiB"\n')
    read = reread(config)
    assert read.left == ()
    assert read.config.plan is not None
    assert [phase.name for phase in read.config.plan.phases] == ["generate"]
    assert (read.config.copy_ahead_ns, read.config.outside.eager) == (1_000_000_000, Eager.ALWAYS)
    assert read.config.outside.per_session_bytes == 1 << 30
    assert read.config.capacity_bytes == 64 << 20


def test_what_needs_a_restart_is_told_and_the_command_line_still_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path, "")
    config, reread = begun(monkeypatch, file, tmp_path)
    file.write_text('device = "host:9"\ncapacity = "32MiB"\n')
    assert reread(config).left == ("device",)


def test_a_plan_that_is_named_no_more_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format("train"))
    file = toml(tmp_path, f'plan = "{plan}"')
    config, reread = begun(monkeypatch, file, tmp_path)
    file.write_text("")
    assert reread(config).config.plan == config.plan


def test_nothing_is_kept_free_where_nobody_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = toml(tmp_path, "")
    config, reread = begun(monkeypatch, file, tmp_path)
    file.write_text('keep_free = "1GiB"')
    with pytest.raises(InvalidArgument, match="nothing can be kept free"):
        reread(config)
