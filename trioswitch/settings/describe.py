"""The settings as text: a commented file to begin with, the values in effect, and a schema for editors."""

import json
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import attrs

from ..config import HistoryStorage, Overflow, RoomPolicy
from .model import SECTIONS, ApiKeySettings, Seconds, Settings, Size

__all__ = ["schema", "show", "template"]

WIDTH: Final = 110
HIDDEN: Final = "***"
_TABLES: Final = (("api.keys", ApiKeySettings), ("rooms", RoomPolicy))
"""Tables that there may be several of."""
_EXAMPLES: Final = {
    ("api.keys", "key"): "a key that only some backend knows",
    ("api.keys", "methods"): ["publish", "broadcast"],
    ("rooms", "pattern"): "chat*",
    ("rooms", "history"): "memory",
}
_ROOM_HELP: Final = {
    "pattern": "names of rooms: `*`, `?`, `[a-z]` as in a shell",
    "overflow": "what happens to a member that cannot take more: " + ", ".join(each.value for each in Overflow),
    "members_publish": "whether members may publish; if not, only the API and clients whose token says so",
    "announce": "whether joins and leaves are announced at all",
    "history": "where the history is kept: " + ", ".join(each.value for each in HistoryStorage),
}


def template() -> str:
    """A file with every key, commented out, with its default."""
    lines = ["# The configuration of trioswitch. Every key has its default; take the # away to change it.", ""]
    for name, section in SECTIONS.items():
        lines += [*_comment(section.__doc__ or ""), f"[{name}]", ""]
        for field in attrs.fields(section):
            if not _is_table(field):
                lines += [*_comment(_help(field)), _line(field.name, _default(field), "# "), ""]
    for name, table in _TABLES:
        lines += [*_comment(table.__doc__ or ""), f"# [[{name}]]", ""]
        for field in attrs.fields(table):
            value = _EXAMPLES.get((name, field.name), _default(field))
            lines += [*_comment(_help(field)), _line(field.name, value, "# "), ""]
    return "\n".join(lines)


def show(settings: Settings, sources: Mapping[str, str], flags: Mapping[str, Any]) -> str:
    """The values in effect, as a file, with where each comes from. Secrets are hidden. `flags` go before the settings."""
    lines: list[str] = []
    for name in SECTIONS:
        section = getattr(settings, name)
        shown = []
        for field in attrs.fields(type(section)):
            value, source = getattr(section, field.name), sources.get(f"{name}.{field.name}")
            flag = field.metadata.get("flag") or field.name
            if flag in flags:
                value, source = flags[flag], f"--{flag.replace('_', '-')}"
            if field.metadata.get("secret") and value:
                value = [HIDDEN] * len(value) if isinstance(value, list) else HIDDEN
            if not _is_table(field):
                shown.append((_line(field.name, value, "# " if value is None else ""), source))
        width = max(len(line) for line, _ in shown)
        lines += [f"[{name}]", *(f"{line:{min(width, 48)}}  # {source or 'default'}" for line, source in shown), ""]
    for key in settings.api.keys:
        lines += _table("api.keys", attrs.evolve(key, key=HIDDEN if key.key else None), sources.get("api.keys"))
    for policy in flags.get("room", settings.rooms):
        lines += _table("rooms", policy, "--room" if "room" in flags else sources.get("rooms"))
    return "\n".join(lines)


def _table(name: str, values: Any, source: str | None) -> list[str]:
    fields = [(field.name, getattr(values, field.name)) for field in attrs.fields(type(values))]
    lines = [_line(key, value) for key, value in fields if value is not None]
    return [f"[[{name}]]  # {source or 'default'}", *lines, ""]


def _is_table(field: "attrs.Attribute[Any]") -> bool:
    return field.type == list[ApiKeySettings]


def _help(field: "attrs.Attribute[Any]") -> str:
    text: str = field.metadata.get("help") or _ROOM_HELP.get(field.name, "")
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _default(field: "attrs.Attribute[Any]") -> Any:
    default: Any = field.default
    return default.factory() if hasattr(default, "factory") else default


def _line(key: str, value: object, before: str = "") -> str:
    return f"{before}{key} = {_value(value)}"


def _value(value: object) -> str:
    """A value in TOML; nothing for one that there is none of."""
    if value is None:
        return ""
    if isinstance(value, Overflow | HistoryStorage):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if value != int(value) else str(int(value))
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> list[str]:
    """Lines of a comment."""
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


# --- the schema


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file, for editors."""
    properties = {name: _object(section) for name, section in SECTIONS.items()}
    properties["rooms"] = {"type": "array", "items": _object(RoomPolicy)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The configuration of trioswitch",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _object(section: Any) -> dict[str, Any]:
    properties = {}
    for field in attrs.fields(section):
        properties[field.name] = {**_kind(field.type), "description": _help(field).rstrip(".")}
        default = _default(field)
        if default is not None and not _is_table(field):
            value = default.value if isinstance(default, Overflow | HistoryStorage) else default
            properties[field.name]["default"] = value
    text = " ".join((section.__doc__ or "").split())
    return {"type": "object", "description": text, "additionalProperties": False, "properties": properties}


_KINDS: Final[Mapping[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "string"]},
    Seconds: {"type": ["number", "string"], "pattern": "^[0-9]+(\\.[0-9]+)? ?(ms|s|m|h|d)?$"},
    Size: {"type": ["integer", "string"], "pattern": "^[0-9]+(\\.[0-9]+)? ?(B|KB|MB|GB|KiB|MiB|GiB)?$"},
    list[str]: {"type": "array", "items": {"type": "string"}},
}


def _kind(kind: Any) -> dict[str, Any]:
    if get_origin(kind) in (Union, UnionType):
        kind = next(inner for inner in get_args(kind) if inner is not NoneType)
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if kind in (Overflow, HistoryStorage):
        return {"enum": [each.value for each in kind]}
    if kind == list[ApiKeySettings]:
        return {"type": "array", "items": _object(ApiKeySettings)}
    return dict(_KINDS[kind])
