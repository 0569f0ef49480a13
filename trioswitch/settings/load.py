"""From a file and the environment to settings; each value knows where it comes from."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from ..config import HistoryStorage, Overflow, one_of
from .model import SECTIONS, Seconds, Settings, Size
from .units import duration, size

__all__ = ["PREFIX", "Loaded", "SettingsError", "load"]

PREFIX: Final = "TRIOSWITCH_"
"""Begins the name of a variable: TRIOSWITCH_SERVER__PORT is the key `port` in the section `server`."""
_ALSO: Final = {"TRIOSWITCH_CONFIG"}


class SettingsError(ValueError):
    """A configuration that is not valid. The text has a line for each problem."""


@attrs.frozen
class Loaded:
    settings: Settings
    sources: Mapping[str, str]
    """Where a value comes from, by `section.key`. What is not here has its default."""


def load(path: Path | None, environment: Mapping[str, str]) -> Loaded:
    """The settings in a file, and in variables of the environment, which go first. Raises SettingsError."""
    text, values = _read(path)
    file = _File(path, text)
    sources = {
        f"{section}.{key}": str(path) for section, keys in values.items() if isinstance(keys, dict) for key in keys
    }
    if "rooms" in values:
        sources["rooms"] = str(path)
    problems = []
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in _ALSO or "__" not in name:
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        kind = (
            {field.name: field.type for field in attrs.fields(SECTIONS[section])}.get(key)
            if section in SECTIONS
            else None
        )
        if kind is None:
            problems.append(f"the variable {name} stands for no key{_nearest(f'{section}.{key}', _all_keys())}")
            continue
        try:
            values.setdefault(section, {})[key] = _from_text(value, kind)
        except ValueError as error:
            problems.append(f"the variable {name}: {error}")
        sources[f"{section}.{key}"] = f"the variable {name}"
    if not problems:
        try:
            return Loaded(_converter.structure(values, Settings), sources)
        except ClassValidationError as invalid:
            problems = [_sentence(file, sources, problem) for problem in _problems(invalid, ())]
    raise SettingsError("\n".join(problems))


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise SettingsError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: it is not TOML: {error}") from None


# --- structuring


def _exactly(kind: type, name: str) -> Any:
    def structure(value: object, _type: object) -> object:
        if type(value) is not kind:
            raise ValueError(f"must be {name}, not {value!r}")
        return value

    return structure


def _choice(value: object, kind: Any) -> object:
    if value not in get_args(kind):
        raise ValueError(f"must be one of {', '.join(map(repr, get_args(kind)))}, not {value!r}")
    return value


def _strings(value: object, _type: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f'must be a list of texts, such as ["a", "b"], not {value!r}')
    return value


_converter: Final = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(str, _exactly(str, "text"))
_converter.register_structure_hook(int, _exactly(int, "a whole number"))
_converter.register_structure_hook(bool, _exactly(bool, "true or false"))
_converter.register_structure_hook(float, lambda value, _type: duration(value))  # those of room policies
_converter.register_structure_hook(Seconds, lambda value, _type: duration(value))
_converter.register_structure_hook(Size, lambda value, _type: size(value))
_converter.register_structure_hook(Overflow, lambda value, _type: one_of(Overflow, value))
_converter.register_structure_hook(HistoryStorage, lambda value, _type: one_of(HistoryStorage, value))
_converter.register_structure_hook_func(lambda kind: kind == list[str], _strings)
_converter.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _choice)


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _is_union(kind: Any) -> bool:
    return _origin(kind) in (Union, UnionType)


def _optional(kind: Any) -> Any:
    """What a value may be beside None; the type itself where it may not be None."""
    if _is_union(kind):
        return next(inner for inner in get_args(kind) if inner is not NoneType)
    return kind


def _structure_optional(value: object, kind: Any) -> object:
    return _converter.structure(value, _optional(kind))


_converter.register_structure_hook_func(
    lambda kind: _is_union(kind) and NoneType in get_args(kind), _structure_optional
)


def _from_text(text: str, kind: Any) -> Any:
    """The value of a variable, as a file would have it. Raises ValueError."""
    kind = _optional(kind)
    if kind == list[str]:
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind is bool:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise ValueError(f"must be true or false, not {text!r}")
        return text.lower() in ("true", "yes", "1")
    if kind is int:
        if not re.fullmatch("-?[0-9]+", text):
            raise ValueError(f"must be a whole number, not {text!r}")
        return int(text)
    if get_origin(kind) is list:
        raise ValueError("can be set in a file only")
    return text


# --- what is wrong


_Path = tuple[str | int, ...]


def _problems(invalid: BaseException, where: _Path) -> Iterator[tuple[_Path, Exception]]:
    """What is wrong, and where: keys and indices, up to the table where an attrs validator has found it."""
    if isinstance(invalid, ClassValidationError | IterableValidationError):
        noted, others = invalid.group_exceptions()
        for error, note in noted:
            step: Any = getattr(note, "name" if isinstance(invalid, ClassValidationError) else "index")
            yield from _problems(error, (*where, step))
        for error in others:
            found = re.match(r"'(\w+)' (.*)", str(error.args[0] if error.args else ""), re.DOTALL)
            if found is None or isinstance(error, ForbiddenExtraKeysError):
                yield from _problems(error, where)
            else:  # a validator's sentence begins with the field's name
                yield (*where, found[1]), ValueError(found[2])
    else:
        assert isinstance(invalid, Exception)
        yield where, invalid


class _File:
    """A file, to find the line of a key in it."""

    def __init__(self, path: Path | None, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()

    def place(self, where: _Path, key: str | None) -> str:
        """The file, and the line where it can be found."""
        names = [step for step in where if isinstance(step, str)]
        index = next((step for step in where if isinstance(step, int)), 0)
        table, last = (".".join(names), key) if key is not None else (".".join(names[:-1]), names[-1] if names else "")
        header, seen = re.compile(rf"\s*\[+\s*{re.escape(table)}\s*\]+"), -1
        wanted = re.compile(
            rf"\s*(?:{re.escape(table)}\.)?[\"']?{re.escape(last or '')}[\"']?\s*=|\s*\[+\s*{re.escape(last or '')}\s*\]+"
        )
        inside = not table
        for number, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("["):
                if table and header.match(line):
                    seen += 1
                    inside = seen == index or not line.lstrip().startswith("[[")
                    continue
                inside = not table and bool(wanted.match(line))
            if (inside or f"{table}." in line) and wanted.match(line):
                return f"{self.path}, line {number}"
        return str(self.path)


def _sentence(file: _File, sources: Mapping[str, str], problem: tuple[_Path, Exception]) -> str:
    where, error = problem
    section = where[0] if where else ""
    if isinstance(error, ForbiddenExtraKeysError):
        key = min(error.extra_fields)
        known = [field.name for field in attrs.fields(error.cl)]
        return f"{file.place(where, key)}: {_name(where, key)}: there is no such key{_nearest(key, known)}"
    text = str(error.args[0]) if error.args else type(error).__name__
    source = sources.get(f"{section}.{where[1]}") if len(where) > 1 else None
    place = source if source is not None and source.startswith("the variable") else file.place(where, None)
    return f"{place}: {_name(where)}: {text}"


def _name(where: _Path, key: str | None = None) -> str:
    """`[section] key`, as a person would look for it."""
    steps = [*where, *([key] if key is not None else [])]
    names = [str(step) for step in steps if isinstance(step, str)]
    number = next((f" (number {step + 1})" for step in steps if isinstance(step, int)), "")
    return names[0] + number if len(names) == 1 else f"[{'.'.join(names[:-1])}]{number} {names[-1]}"


def _nearest(key: str, known: list[str]) -> str:
    found = difflib.get_close_matches(key, known, 1, 0.6)
    return f"; did you mean {found[0]}?" if found else f"; there are {', '.join(known)}"


def _all_keys() -> list[str]:
    return [f"{section}.{field.name}" for section, cls in SECTIONS.items() for field in attrs.fields(cls)]
