"""A YAML file, or a dict with the same settings, and overrides -> a checked config."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from unet.config.constraints import find_conflicts
from unet.config.parsing import UNKNOWN, Error, describe_value, named_items, parse_section
from unet.config.schema import Config
from unet.config.suggestions import suggest
from unet.runtime.text import format_list, join_some, shorten

_MAX_BYTES, _MAX_DEPTH, _MAX_VALUES = 500_000, 20, 100_000  # of a config
_TOO_DEEP = f"is nested too deeply: expected at most {_MAX_DEPTH} levels"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, change it by `section.key=value` overrides, and check all of it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with every error found, one per line.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"config: got {type(path).__name__}, expected a Config or the path of a YAML file"
        )
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a config file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such config file; check the path")
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    try:
        raw = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: got {describe_value(raw)}, expected sections such as 'data:'")
    return config_from_dict({"name": path.stem, **raw}, overrides, where=str(path))


def config_from_dict(
    raw: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "config"
) -> Config:
    """Check a plain dict, as `config_to_dict` returns it, with overrides, as `load_config` does."""
    try:
        _check_size(raw, _items_of_value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    words = [_parse_override(text) for text in overrides]
    for word in words:
        raw = _with_value(raw, word.keys, word.value)
    if isinstance(raw.get("data"), Mapping) and raw["data"].get("validation") == "none":
        raw = _with_value(raw, ["data", "validation"], {"none": True})
    errors: list[Error] = []
    config = parse_section(Config, raw, "", errors)
    if not errors and (errors := find_conflicts(config)) and words:
        where += f" with {join_some([word.shown for word in words])}"
    if errors:
        raise ValueError(format_list([_describe(*error, words, where) for error in errors], 20))
    assert isinstance(config, Config)
    return config


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                problem = f"got the key {shorten(key.value)!r} twice, expected it once; remove one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def load_yaml(text: str | bytes) -> Any:
    """Read YAML; raise ValueError if it is none, repeats a key, or is too large for a config."""
    if len(text) > _MAX_BYTES:
        raise ValueError(f"is too long: expected at most {_MAX_BYTES} bytes of YAML")
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        _check_size(node, _items_of_node)  # aliases can make a short text a huge value
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or error.context or "cannot be read"
        if mark is None:
            raise ValueError(f"is not YAML: {problem}") from None
        hint = "; indent with spaces, not with tabs" if "\\t" in problem else ""
        shown = mark.get_snippet(indent=2, max_length=60) or ""
        raise ValueError(
            f"is not YAML: line {mark.line + 1}, column {mark.column + 1}: {problem}{hint}\n{shown}"
        ) from None
    except _TooLargeError:
        raise
    except RecursionError:
        raise _TooLargeError(_TOO_DEEP) from None
    except Exception as error:  # PyYAML raises many types for values that do not fit their tag
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None


class _TooLargeError(ValueError):
    """A value is too deep or too large for a config."""


def _items_of_node(node: Any) -> Iterable[Any]:
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _items_of_value(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return chain.from_iterable(value.items())
    return value if isinstance(value, list | tuple) else ()


def _check_size(root: Any, items: Callable[[Any], Iterable[Any]]) -> None:
    """Raise `_TooLargeError` for a value that is too deep, or too large when written out."""
    known: dict[int, tuple[int, int]] = {}  # number of values in each list and mapping, and depth

    def measure(value: Any, level: int) -> tuple[int, int]:
        if level > _MAX_DEPTH:  # or inside itself
            raise _TooLargeError(_TOO_DEEP)
        if id(value) not in known:
            inner = [measure(item, level + 1) for item in items(value)]
            count = 1 + sum(size for size, _ in inner)
            known[id(value)] = count, 1 + max((depth for _, depth in inner), default=0)
        count, depth = known[id(value)]
        if depth > _MAX_DEPTH:
            raise _TooLargeError(_TOO_DEEP)
        if count > _MAX_VALUES:
            raise _TooLargeError(f"is too large: expected at most {_MAX_VALUES} values")
        return count, depth

    measure(root, 0)


@dataclass(frozen=True)
class _Override:
    shown: str  # the word on the command line
    keys: list[str]
    value_text: str
    value: Any


def _parse_override(text: str) -> _Override:
    path, equals, value_text = text.partition("=")
    shown = shorten(text, 60)
    if not equals or not path or path.count(".") > _MAX_DEPTH:
        raise ValueError(f"{shown}: expected an override such as train.epochs=5")
    try:
        return _Override(shown, path.split("."), shorten(value_text), load_yaml(value_text))
    except ValueError as error:
        raise ValueError(f"{shown}: the value {error}") from None


def _with_value(raw: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    raw = named_items(raw)
    inner = raw if isinstance(raw, Mapping) else {}
    return {**inner, keys[0]: _with_value(inner.get(keys[0]), keys[1:], value)}


def _describe(path: str, problem: str, words: Sequence[_Override], where: str) -> str:
    """Describe an error, beginning with its place: an override or else the file."""
    for word in reversed(words):
        own = ".".join(word.keys)
        if problem == UNKNOWN and f"{own}.".startswith(f"{path}."):
            return f"{word.shown}: {problem}; {suggest(own, word.value, word.value_text)}"
        if path == own:
            return f"{word.shown}: {problem}"
        if path.startswith((f"{own}.", f"{own}[")):
            return f"{word.shown}: {path}: {problem}"
    if problem == UNKNOWN:
        problem += f"; {suggest(path)}"
    return f"{where}: {shorten(path)}: {problem}"
