"""From a config file and flags such as --config.optim.lr=1e-3 to a checked, typed config."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmoe.config import TrainConfig
from vmoe.errors import UserError

CONFIGS = Path(__file__).parent / "configs"


def load(path: str, flags: Sequence[str] = ()) -> TrainConfig:
    """The config of a file, changed by flags, every field and value checked.

    Args:
      path: a Python file whose get_config() returns a TrainConfig, or a dict or ConfigDict of
        its fields; or the bare name of a file in vmoe/configs.
      flags: "--config.FIELD=VALUE", or "--config.FIELD", "VALUE"; the later one counts.

    Raises:
      UserError: a missing file, an unknown field (with the nearest real one), a value of the
        wrong type (with the expected type), or settings that do not fit together.
    """
    return with_overrides(bind(TrainConfig, _get_config(path)), flags).validate()


def with_overrides(config: TrainConfig, flags: Sequence[str]) -> TrainConfig:
    """The config with the fields named by the flags replaced; see `load`."""
    from absl import flags as absl_flags
    from ml_collections import config_flags

    flags = _with_values(flags)
    for flag in flags:
        if match := re.match(r"--?(?:no)?config\.([^=]*)", flag):
            _check_field(config, match[1])
    values = absl_flags.FlagValues()
    holder = config_flags.DEFINE_config_dict(
        "config", _config_dict(config), flag_values=values, sys_argv=flags
    )
    try:
        rest = values(["vmoe", *flags])[1:]
    except absl_flags.Error as error:
        raise UserError(_one_line(error)) from None
    if rest:
        raise UserError(f"{rest[0]!r} is no flag; fix: --config.FIELD=VALUE")
    return bind(TrainConfig, holder.value.to_dict())


def _with_values(flags: Sequence[str]) -> list[str]:
    """["--config.a", "1"] as ["--config.a=1"]: to ml_collections a bare literal flag is True."""
    joined: list[str] = []
    for flag in flags:
        if joined and not flag.startswith("-") and "=" not in joined[-1]:
            joined[-1] += f"={flag}"
        else:
            joined.append(flag)
    return joined


def bind(kind: Any, value: Any, path: str = "") -> Any:
    """The value as the type `kind`, with dicts turned into its dataclasses.

    Integers are taken for floats and lists for tuples; nothing else is converted.

    Raises:
      UserError: names the path of the field, and the nearest real field or the expected type.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _bind_dataclass(kind, value, path)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        fits = [option for option in options if type(value) is option]
        return None if value is None else bind((fits or options)[0], value, path)
    if typing.get_origin(kind) is tuple and isinstance(value, (tuple, list)):
        return _bind_tuple(kind, value, path)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise UserError(f"{path}={value!r} is a {_type_name(type(value))}, not a {_type_name(kind)}")


def _bind_dataclass(kind: Any, value: Any, path: str) -> Any:
    if isinstance(value, kind):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        fields = ", ".join(f.name for f in dataclasses.fields(kind))
        raise UserError(
            f"{path or 'the config'}={value!r} is a {_type_name(type(value))}, not a group of "
            f"fields; fix: set its fields: {fields}"
        )
    hints = typing.get_type_hints(kind)
    for name in value:
        _check_name(hints, name, path)
    fields = {name: bind(hints[name], item, _join(path, name)) for name, item in value.items()}
    return kind(**fields)


def _bind_tuple(kind: Any, value: Sequence[Any], path: str) -> tuple[Any, ...]:
    inner = typing.get_args(kind)
    if inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise UserError(f"{path}={tuple(value)!r} has {len(value)} entries, not {len(inner)}")
    return tuple(
        bind(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True))
    )


def _check_field(config: Any, path: str) -> None:
    """Refuses a dotted path that leads to no field of the config."""
    done = ""
    for name in path.split("."):
        if config is None:
            raise UserError(
                f"{done} is None, so it has no field {name!r}; fix: a config file that sets {done}"
            )
        if not dataclasses.is_dataclass(config):
            raise UserError(f"{done} has no fields; fix: --config.{done}=VALUE")
        _check_name({f.name: f for f in dataclasses.fields(config)}, name, done)
        config, done = getattr(config, name), _join(done, name)
    if dataclasses.is_dataclass(config):
        names = ", ".join(f"{done}.{f.name}" for f in dataclasses.fields(config))
        raise UserError(f"{done} is a group of fields; fix: set one of {names}")


def _check_name(known: Mapping[str, Any], name: str, path: str) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    nearest = f"did you mean {_join(path, close[0])}? " if close else ""
    where = path or "the config"
    raise UserError(
        f"there is no field {_join(path, name)}; fix: {nearest}{where} has {', '.join(known)}"
    )


def _config_dict(config: Any) -> Any:
    """As a ConfigDict whose values any literal may replace: `bind` checks the types afterwards.

    Strings keep their type, so that a folder named 2024 stays a string.
    """
    from ml_collections import config_dict

    hints = typing.get_type_hints(type(config))
    fields: dict[str, Any] = {}
    for name, kind in hints.items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            fields[name] = _config_dict(value)
        else:
            fields[name] = config_dict.FieldReference(
                value, field_type=str if kind is str else object
            )
    return config_dict.ConfigDict(fields, convert_dict=False)


def _get_config(path: str) -> Any:
    file = Path(path)
    if not file.suffix and not file.exists():
        file = CONFIGS / f"{path}.py"
    if not file.is_file():
        known = ", ".join(sorted(f.stem for f in CONFIGS.glob("[a-z]*.py")))
        raise UserError(f"config file {path} does not exist; fix: a path, or one of {known}")
    spec = importlib.util.spec_from_file_location("vmoe_config_file", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is no Python file; fix: name it NAME.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config()
    except Exception as error:
        raise UserError(
            f"config file {path}: {type(error).__name__}: {_one_line(error)}"
        ) from error


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "None"
    if typing.get_origin(kind) is tuple:
        inner = [_type_name(k) for k in typing.get_args(kind) if k is not Ellipsis]
        return f"tuple of {inner[0]}" if len(inner) == 1 else f"({', '.join(inner)})"
    return str(getattr(kind, "__name__", kind))


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
