"""Plain values, as YAML has them -> dataclasses: nothing unknown, missing or of another type."""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


@dataclass(frozen=True)
class Range:
    """Bounds of a number; `above` is the bound that it must exceed."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
        )

    def __str__(self) -> str:
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
            )
            if bound is not None
        ]
        return " and ".join(bounds)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} stands here twice; remove one",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str | bytes) -> Any:
    """Read YAML in which every key stands once.

    Raises:
        ValueError: saying why it is not YAML.
    """
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"is not YAML: {' '.join(str(error).split())}") from None


def override(
    raw: Mapping[str, Any], overrides: Sequence[str], faults: list[str]
) -> Mapping[str, Any]:
    """Change a dict by texts such as `train.epochs=5`; what is none is added to `faults`."""
    for text in overrides:
        path, equals, value_text = text.partition("=")
        if not equals or not path:
            faults.append(f"{text!r}: expected an override such as train.epochs=5")
            continue
        try:
            value = load_yaml(value_text)
        except ValueError as error:
            faults.append(f"{text!r}: {error}")
            continue
        raw = _set(raw, path.split("."), value)
    return raw


def _set(raw: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    inner = raw if isinstance(raw, Mapping) else {}
    return {**inner, keys[0]: _set(inner.get(keys[0]), keys[1:], value)}


def _read(annotation: Any, value: Any, path: str, faults: list[str]) -> Any:
    """Return `value` as the annotation's type; what does not fit is added to `faults`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return read_section(annotation, value, path, faults)
    if origin is Annotated:
        unread: list[str] = []
        number = _read(args[0], value, path, unread)
        if not unread and number in args[1]:
            return number
    elif origin in (Union, types.UnionType):
        sections = [option for option in args if dataclasses.is_dataclass(option)]
        if sections and isinstance(value, Mapping):
            return read_section(sections[0], value, path, faults)
        for option in args:
            unfit: list[str] = []
            result = _read(option, value, path, unfit)
            if not unfit:
                return result
    elif origin is Literal:
        if isinstance(value, str) and value in args:
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(args) == len(value):
            return tuple(
                _read(arg, item, f"{path}[{i}]", faults)
                for i, (arg, item) in enumerate(zip(args, value, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                faults.append(
                    f"{path}: got the name {describe_value(key)}, expected text; put it in quotes"
                )
        return {key: _read(args[1], item, f"{path}.{key}", faults) for key, item in value.items()}
    elif annotation is float:
        # PyYAML reads 1e-4 as text: it is a number for YAML 1.2 and for people.
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            number = float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        else:
            number = math.nan
        if -1e100 < number < 1e100:  # not inf, not nan, and no overflow
            return float(number)
    elif annotation is types.NoneType:
        if value is None:
            return None
    elif type(value) is annotation:
        return value
    faults.append(f"{path}: got {describe_value(value)}, expected {_describe_type(annotation)}")
    return None


def read_section(section: Any, value: Any, path: str, faults: list[str]) -> Any:
    """Read a mapping as a dataclass.

    Args:
        section: the dataclass.
        value: to be read.
        path: dotted, before the keys in faults.
        faults: where every fault is added: unknown and missing keys, what has the wrong type or is
            out of range.

    Returns:
        An instance, to be used only if no fault was added.
    """
    if not isinstance(value, Mapping):
        faults.append(f"{path}: got {describe_value(value)}, expected {_describe_type(section)}")
        return None
    prefix = f"{path}." if path else ""
    hints = get_type_hints(section, include_extras=True)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(hints)}"
            faults.append(f"{prefix}{key}: unknown key; {hint}")
    known = {}
    for item in dataclasses.fields(section):
        required = item.default is item.default_factory is dataclasses.MISSING
        if item.name in value:
            known[item.name] = _read(hints[item.name], value[item.name], prefix + item.name, faults)
        elif required:
            expected = _describe_type(hints[item.name])
            faults.append(f"{prefix}{item.name}: missing, expected {expected}")
            known[item.name] = None
    return section(**known)


def describe_value(value: Any) -> str:
    """Name a value, as after "got"."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {value!r}"
        case list() | tuple():
            return f"the list {list(value)}"
        case Mapping():
            return "a section with keys"
        case _:
            return f"{value}"


def _describe_type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return f"a section of {', '.join(item.name for item in dataclasses.fields(annotation))}"
    if origin is Annotated:
        return f"{_describe_type(args[0])} {args[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe_type(option) for option in args)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is dict:
        return f"names, each with {_describe_type(args[1])}"
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each item {_describe_type(args[0])}"
        return f"a list of {len(args)}, each {_describe_type(args[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "text (in quotes if it looks like a number)",
        bool: "true or false",
        types.NoneType: "null",
    }
    return words[annotation]
