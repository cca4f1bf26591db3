"""A YAML file, or a dict with the same settings, and overrides -> a checked config."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import yaml

from unet.config.constraints import find_conflicts
from unet.config.data_schema import MayChange
from unet.config.parsing import UNKNOWN, Error, describe_value, named_items, parse_section
from unet.config.schema import Config
from unet.config.suggestions import suggest
from unet.config.values import changed_settings
from unet.runtime.files import no_such
from unet.runtime.optional import quickstart_config
from unet.runtime.text import format_list, join_some, shorten

_MAX_BYTES, _MAX_DEPTH, _MAX_VALUES = 500_000, 20, 100_000  # of a config
_TOO_DEEP = f"is nested too deeply: expected at most {_MAX_DEPTH} levels"


Overrides = Sequence[str] | Mapping[str, Any]
"""Changes of settings: words such as "train.epochs=5", or a dict.

In a dict a dotted key such as "train.epochs" sets one setting, and the name of a section with a
dict of its settings sets these.
"""


def load_config(
    path: str | Path | Mapping[str, Any], changes: Overrides = (), /, **overrides: Any
) -> Config:
    """Read a YAML file, or take a dict with the same settings, change it, and check all of it.

    `load_config("a.yaml", name="b", train={"epochs": 5}, **{"model.widths": [8, 16]})` changes four
    settings.

    Args:
        path: the file or the dict; "quickstart" is the config of the quickstart.
        changes: as words, as the command line takes them, or a dict.
        overrides: further changes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with every error found, one per line.
    """
    words = [*_list_overrides(changes), *_list_overrides(overrides)]
    if isinstance(path, Mapping):
        return _make_config(path, words, "config")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"config: got {type(path).__name__}, expected a Config, the path of a YAML file or a "
            "dict"
        )
    path = Path(path)
    if str(path) == "quickstart" and not path.exists():
        path = quickstart_config()
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a config file in it")
    if not path.is_file():
        raise FileNotFoundError(no_such(path, "config file"))
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    try:
        raw = load_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: got {describe_value(raw)}, expected sections such as 'data:'")
    return _make_config({"name": path.stem, **raw}, words, str(path))


def config_from_dict(
    raw: Mapping[str, Any], overrides: Overrides = (), where: str = "config"
) -> Config:
    """Check a plain dict, as `config_to_dict` returns it, with overrides, as `load_config` does."""
    return _make_config(raw, _list_overrides(overrides), where)


def restore_config(raw: Mapping[str, Any], overrides: Overrides, where: str) -> Config:
    """Make the config of a checkpoint, with overrides of settings that do not change the model.

    Raises:
        ValueError: if an override would change the model.
    """
    trained, config = config_from_dict(raw, (), where), config_from_dict(raw, overrides, where)
    if changes := changed_settings(trained, config, MayChange.IN_USE):
        advice = "leave that out"
        if any(change.startswith("data.classes.") for change in changes):
            advice += ", or rename classes with data.names, such as data.names='{OLD: NEW}'"
        raise ValueError(
            f"{where}: a trained model keeps its settings, but {'; '.join(changes)}; {advice}"
        )
    return config


def overridden(overrides: Overrides) -> list[str]:
    """List the dotted names of the settings or sections that overrides change."""
    return [".".join(word.keys) for word in _list_overrides(overrides)]


def _make_config(raw: Mapping[str, Any], words: Sequence["_Override"], where: str) -> Config:
    try:
        _check_size(raw, _items_of_value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for word in words:
        raw = _with_value(raw, word.keys, word.value)
    given = {tuple(word.keys) for word in words}
    for name, other in (("minutes", "epochs"), ("epochs", "minutes")):
        if ("train", name) in given and ("train", other) not in given:
            raw = _with_value(raw, ["train", other], None)  # one replaces the other
    if isinstance(raw.get("data"), Mapping) and raw["data"].get("validation") == "none":
        raw = _with_value(raw, ["data", "validation"], {"none": True})
    errors: list[Error] = []
    config = parse_section(Config, _plain(raw), "", errors)
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


def _list_overrides(overrides: Overrides) -> list[_Override]:
    """Parse overrides.

    Raises:
        TypeError: if it is neither a list of words nor a dict.
        ValueError: if a word is no override.
    """
    if isinstance(overrides, str) or not isinstance(overrides, Sequence | Mapping):
        raise TypeError(
            f"overrides: got {overrides!r:.100}, expected a dict such as {{'train.epochs': 5}}, or "
            "a list of words such as 'train.epochs=5'"
        )
    if not isinstance(overrides, Mapping):
        return [_parse_override(text) for text in overrides]
    sections = {name for name, hint in get_type_hints(Config).items() if is_dataclass(hint)}
    settings: dict[str, Any] = {}
    for key, value in overrides.items():
        if key in sections and isinstance(value, Mapping):
            settings |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            settings[str(key)] = value
    return [
        _Override(shorten(f"{key}={value}", 60), key.split("."), shorten(str(value)), value)
        for key, value in settings.items()
    ]


def _plain(value: Any) -> Any:
    """Replace paths and NumPy's numbers by what a YAML file has for them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


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
