"""YAML as data only: no tags, no aliases, no repeated keys, and the line of every key for error messages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from talas_lib import paths
from talas_lib.errors import TalasError

# the C parser is ten times as fast; both build plain data only
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Location = tuple[str | int, ...]
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_DEEPEST = 50


@dataclass(frozen=True)
class Document:
    """A parsed file. label: its path as shown to the user; lines: 1-based line of each key, by its path of keys."""

    label: str
    values: dict[str, Any]
    lines: dict[Location, int]

    def where(self, location: Location) -> str:
        """`params/teachers/x.yaml, line 3`, with the line of the nearest enclosing key."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{self.label}, line {self.lines[location]}" if location else self.label


def read_yaml(path: Path) -> Document:
    """The mapping in a YAML file.

    Raises TalasError, with file and line, for broken YAML, a tag, an anchor or alias, a repeated key, a key
    that is not text, or a file that is not a mapping.
    """
    label = _label(path)
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise _unreadable(label, error) from error
    return _parsed(label, text)


def read_text(text: str, label: str) -> Document:
    """`read_yaml` for a mapping that is no file, such as an argument; label: how messages call it."""
    return _parsed(label, text)


def read_value(text: str, label: str) -> Any:
    """One plain value of any kind, under the same rules."""
    try:
        _refuse_extras(text, label)
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(label, error) from error


@lru_cache(maxsize=256)
def _parsed(label: str, text: str) -> Document:
    """A study reads the same few files hundreds of times; nobody may change what is in the document."""
    try:
        _refuse_extras(text, label)
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(label, error) from error
    if not isinstance(node, yaml.MappingNode):
        raise TalasError(f"{label} holds {type(values).__name__}, expected `key: value` lines")
    lines: dict[Location, int] = {}
    _walk(node, (), lines, label)
    return Document(label, values, lines)


def _unreadable(label: str, error: Exception) -> TalasError:
    return TalasError(f"{label} is not readable as YAML: {' '.join(str(error).split())}")


def _label(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(paths.root().resolve()))
    except (ValueError, TalasError):
        return str(path)


def _refuse_extras(text: str, label: str) -> None:
    refused = {
        yaml.TagToken: "a tag (!...)",
        yaml.AnchorToken: "an anchor (&...)",
        yaml.AliasToken: "an alias (*...)",
    }
    depth = 0
    for token in yaml.scan(text, Loader=_Loader):
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _DEEPEST:  # the parser calls itself for each, and would end the process at some ten thousand
            raise TalasError(
                f"{label}, line {token.start_mark.line + 1}: nested deeper than {_DEEPEST} is not readable as YAML here"
            )
        for kind, words in refused.items():
            if isinstance(token, kind):
                line = token.start_mark.line + 1
                raise TalasError(
                    f"{label}, line {line}: {words} is not accepted here; write the plain value, in quotes"
                    " if it is text"
                )


def _walk(node: yaml.Node, location: Location, lines: dict[Location, int], label: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*location, index] = item.start_mark.line + 1
            _walk(item, (*location, index), lines, label)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            raise TalasError(
                f"{label}, line {line}: the key {key!r} is not text; YAML reads yes, no, on, off and digits as values"
            )
        if (*location, key) in lines:
            first = lines[*location, key]
            raise TalasError(
                f"{label}, line {line}: the key {key!r} was given on line {first} already; keep one of them"
            )
        lines[*location, key] = line
        _walk(value_node, (*location, key), lines, label)
