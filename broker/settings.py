"""What an operator says to a daemon, from three places: the command line, the environment, and a file in TOML.

An option has one name in all of them: `--host-budget`, `VRAMBROKER_HOST_BUDGET`, `host_budget`. The command line goes
before the environment, that before the file. Units are the command line's everywhere. Here words are put together and
refused that mean nothing; what they mean on a device is `config.py`'s.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from vrambroker.broker.adapters.metrics.address import MetricsAddress, parse_metrics_address, require_allowed
from vrambroker.broker.config import Config, HistoryRules, OutsideRules, Reread, parse_device
from vrambroker.broker.core.errors import InvalidArgument
from vrambroker.broker.core.limits import Eager
from vrambroker.broker.core.phase import PhasePlan
from vrambroker.broker.durations import parse_duration
from vrambroker.broker.options import OPTIONS
from vrambroker.broker.plan_file import read_plan_file
from vrambroker.broker.reporting import os_error_text
from vrambroker.broker.sizes import parse_size

PREFIX: Final = "VRAMBROKER_"
CONFIG_VARIABLE: Final = "VRAMBROKER_CONFIG"
# What workers and tests read there, and a daemon does not.
FOREIGN_VARIABLES: Final = frozenset(
    {
        "VRAMBROKER_BENCH_DEVICE",
        "VRAMBROKER_CONTENTS",
        "VRAMBROKER_GPU_REQUIRED",
        "VRAMBROKER_NAME",
        "VRAMBROKER_PAUSE",
        "VRAMBROKER_TAG",
        "VRAMBROKER_TIMEOUT",
        "VRAMBROKER_VLLM",
    }
)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _sound(parse: Callable[[str, str], object]) -> AfterValidator:
    """Have a text refused that can't be parsed, in the parser's own words, which name the option."""

    def check(text: str, about: ValidationInfo) -> str:
        try:
            parse(text, about.field_name or "")
        except InvalidArgument as error:
            raise ValueError(error.message) from error
        return text

    return AfterValidator(check)


def _size_or_nothing(text: str, argument: str) -> object:
    return 0 if text == "0" else parse_size(text, argument)


def _duration_or_off(text: str, argument: str) -> object:
    return None if text == "off" else parse_duration(text, argument)


# Bytes may be a bare number in TOML, as they may on the command line.
Size = Annotated[str, BeforeValidator(_as_text), _sound(parse_size)]
SizeOrNothing = Annotated[str, BeforeValidator(_as_text), _sound(_size_or_nothing)]
DurationOrOff = Annotated[str, _sound(_duration_or_off)]
Device = Annotated[str, BeforeValidator(_as_text), _sound(lambda text, _: parse_device(text))]


class Settings(BaseSettings):
    """Every option of `broker serve`, in words; None leaves it to the device or the machine."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    device: Device = Field("host", description=OPTIONS["device"])
    capacity: Size | None = Field(None, description=OPTIONS["capacity"])
    host_budget: Size | None = Field(None, description=OPTIONS["host_budget"])
    spill_dir: Path | None = Field(None, description=OPTIONS["spill_dir"])
    spill_budget: Size | None = Field(None, description=OPTIONS["spill_budget"])
    plan: Path | None = Field(None, description=OPTIONS["plan"])
    keep_free: SizeOrNothing | None = Field(None, description=OPTIONS["keep_free"])
    outside_per_session: Size = Field("4GiB", description=OPTIONS["outside_per_session"])
    eager: Eager = Field(Eager.AUTO, description=OPTIONS["eager"])
    copy_ahead: DurationOrOff | None = Field(None, description=OPTIONS["copy_ahead"])
    metrics: Annotated[str, _sound(lambda text, _: parse_metrics_address(text))] | None = Field(
        None, description=OPTIONS["metrics"]
    )
    metrics_anywhere: bool = Field(False, description=OPTIONS["metrics_anywhere"])
    history: Size = Field("32MiB", description=OPTIONS["history"])
    history_dir: Path | None = Field(None, description=OPTIONS["history_dir"])
    history_budget: Size = Field("256MiB", description=OPTIONS["history_budget"])
    run_dir: Path | None = Field(None, description=OPTIONS["run_dir"])


RELOADED: Final = frozenset({"plan", "keep_free", "outside_per_session", "eager", "copy_ahead"})
"""Options that a daemon takes up again on SIGHUP; the others are those of its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where settings are read from, again and again. `said`: what the command line names, by the options' names."""

    said: Mapping[str, object]
    file: Path | None
    environment: Mapping[str, str]

    @staticmethod
    def of(said: Mapping[str, object | None], file: Path | None) -> "Sources":
        """Return the sources of this process; without a file, the environment may name one."""
        named = os.environ.get(CONFIG_VARIABLE)
        return Sources(
            said={name: value for name, value in said.items() if value is not None},
            file=file if file is not None else Path(named) if named else None,
            environment=dict(os.environ),
        )

    def read(self) -> Settings:
        """Return what they say together. Raises `InvalidArgument` with everything that is wrong."""
        self._require_known_variables()
        try:
            return _settings_of(self.said, self.file)
        except ValidationError as error:
            wrong = "; ".join(self._in_words(one) for one in error.errors())
            first = error.errors()[0]["loc"]
            raise InvalidArgument(message=wrong, argument=str(first[0]) if first else "") from error

    def located(self, error: InvalidArgument) -> InvalidArgument:
        """Return an error about what an option means on this machine with the place where it was said, if it was."""
        name = error.argument
        if name not in Settings.model_fields or not self._is_said(name):
            return error
        return InvalidArgument(message=f"{error.message} ({self._origin(name)})", argument=name)

    def _is_said(self, name: str) -> bool:
        return bool(getattr(self.read(), name) != Settings.model_fields[name].default)

    def _require_known_variables(self) -> None:
        ours = {PREFIX + name.upper() for name in Settings.model_fields} | {CONFIG_VARIABLE}
        for name in sorted(self.environment):
            if name.startswith(PREFIX) and name not in ours | FOREIGN_VARIABLES:
                raise InvalidArgument(
                    message=f"the environment's {name} is unknown{_nearest(name, ours)}", argument=name
                )

    def _in_words(self, error: ErrorDetails) -> str:
        name = str(error["loc"][0])
        if error["type"] == "extra_forbidden":
            return f"{self.file}: {name} is unknown{_nearest(name, Settings.model_fields)}"
        why = error["msg"].removeprefix("Value error, ")
        if error["type"] != "value_error":
            why = f"{name} {error['input']!r}: {why}"
        return f"{why} ({self._origin(name)})"

    def _origin(self, name: str) -> str:
        if name in self.said:
            return f"--{name.replace('_', '-')}"
        variable = PREFIX + name.upper()
        return variable if self.environment.get(variable) else str(self.file)


def _settings_of(said: Mapping[str, object], file: Path | None) -> Settings:
    if file is not None:
        _require_toml(file)

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    arguments: dict[str, Any] = dict(said)
    return Sourced(**arguments)


def _require_toml(file: Path) -> None:
    """Refuse a file that is none, or can't be read, either of which a source would take for an empty one."""
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable("config", error) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(message=f"{file}: this is no UTF-8: {error.reason}", argument="config") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(message=f"{file}: this is no TOML: {error}", argument="config") from None


def _unreadable(argument: str, error: OSError) -> InvalidArgument:
    return InvalidArgument(message=f"{argument} can't be read: {os_error_text(error)}", argument=argument)


def _nearest(name: str, known: "Mapping[str, object] | set[str]") -> str:
    found = get_close_matches(name, list(known), n=1) or get_close_matches(name.lower(), list(known), n=1)
    return f": did you mean {found[0]}?" if found else f"; known are {', '.join(sorted(known))}"


def config_of(settings: Settings) -> Config:
    """Return what the words mean, with the device opened. Raises `InvalidArgument`, `DriverFailed`, and OSError."""
    return Config.of(
        device=settings.device,
        capacity=settings.capacity,
        host_budget=settings.host_budget,
        run_dir=settings.run_dir,
        plan=_phases(settings),
        spill_dir=settings.spill_dir,
        spill_budget=settings.spill_budget,
        outside=_outside(settings),
        copy_ahead=settings.copy_ahead,
        metrics=_metrics(settings),
        history=HistoryRules.of(memory=settings.history, folder=settings.history_dir, budget=settings.history_budget),
    )


def reloaded(config: Config, settings: Settings) -> Config:
    """Return the configuration of a running daemon with what can be changed as the words say now; raises as `config_of`."""
    copy_ahead_ns = config.place.copy_ahead_ns
    if settings.copy_ahead is not None:
        copy_ahead_ns = None if settings.copy_ahead == "off" else parse_duration(settings.copy_ahead, "copy_ahead")
    phases = _phases(settings)
    return replace(
        config,
        plan=config.plan if phases is None else phases,
        outside=_outside(settings).for_place(config.place),
        copy_ahead_ns=copy_ahead_ns,
    )


class Rereading:
    """The settings of a running daemon, read again when it is told to."""

    def __init__(self, sources: Sources, settings: Settings) -> None:
        self._sources = sources
        self._begun_with = settings

    def __call__(self, config: Config) -> Reread:
        """Return the configuration as the sources say now; raises as `Sources.read` and `config_of`."""
        settings = self._sources.read()
        fixed = (name for name in Settings.model_fields if name not in RELOADED)
        left = tuple(name for name in fixed if getattr(self._begun_with, name) != getattr(settings, name))
        return Reread(config=reloaded(config, settings), left=left)


def _phases(settings: Settings) -> PhasePlan | None:
    if settings.plan is None:
        return None
    try:
        return read_plan_file(settings.plan).phases
    except OSError as error:
        raise _unreadable("plan", error) from error


def _metrics(settings: Settings) -> MetricsAddress | None:
    if settings.metrics is None:
        return None
    address = parse_metrics_address(settings.metrics)
    require_allowed(address, anywhere=settings.metrics_anywhere)
    return address


def _outside(settings: Settings) -> OutsideRules:
    return OutsideRules.of(keep_free=settings.keep_free, per_session=settings.outside_per_session, eager=settings.eager)
