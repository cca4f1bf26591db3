"""Plain values, as YAML has them -> dataclasses. Unknown or mistyped settings are errors."""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Bounds of a number: `minimum <= number <= maximum` and `above < number`."""

    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf

    def __contains__(self, number: float) -> bool:
        return self.minimum <= number <= self.maximum and self.above < number

    def __str__(self) -> str:
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum}
        return " and ".join(f"{word} {x}" for word, x in bounds.items() if math.isfinite(x))


def parse_section(section: Any, value: Any, path: str, errors: list[str]) -> Any:
    """Read a mapping as the dataclass `section`.

    Unknown and missing keys, values of another type and numbers out of range are appended to
    `errors`, with their dotted path below `path`. The result may only be used if there are none.
    """
    if not isinstance(value, Mapping):
        errors.append(f"{path}: got {describe_value(value)}, expected {describe_type(section)}")
        return None
    prefix = f"{path}." if path else ""
    hints = get_type_hints(section, include_extras=True)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(hints)}"
            errors.append(f"{prefix}{key}: unknown key; {hint}")
    known = {}
    for item in dataclasses.fields(section):
        name, hint = item.name, hints[item.name]
        if name in value:
            known[name] = _parse(hint, value[name], prefix + name, errors)
        elif item.default is item.default_factory is dataclasses.MISSING:
            errors.append(f"{prefix}{name}: missing, expected {describe_type(hint)}")
            known[name] = None
    return section(**known)


def named_items(value: Any) -> Any:
    """Turn a list such as [{name: a, value: 1}, ...] into {a: 1, ...}; return others unchanged."""
    if not isinstance(value, list | tuple):
        return value
    mapping = {
        item["name"]: item["value"]
        for item in value
        if isinstance(item, Mapping)
        and item.keys() == {"name", "value"}
        and isinstance(item["name"], Hashable)
    }
    return mapping if len(mapping) == len(value) else value


def _parse(annotation: Any, value: Any, path: str, errors: list[str]) -> Any:
    """Return `value` as the annotation's type; if it does not fit, append to `errors`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return parse_section(annotation, value, path, errors)
    if origin is Annotated and not _ranges(annotation):
        return _parse(args[0], value, path, errors)
    if origin in (Union, types.UnionType):
        for option in args:
            if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                return parse_section(option, value, path, errors)
        for option in args:
            rejected: list[str] = []
            result = _parse(option, value, path, rejected)
            if not rejected:
                return result
    elif origin is tuple and isinstance(value, list | tuple):
        types_of_items = (args[0],) * len(value) if args[-1] is Ellipsis else args
        if len(types_of_items) == len(value):
            return tuple(
                _parse(one, item, f"{path}[{i}]", errors)
                for i, (one, item) in enumerate(zip(types_of_items, value, strict=True))
            )
    elif origin is dict and isinstance(value := named_items(value), Mapping):
        for key in value:
            if not isinstance(key, str):
                errors.append(
                    f"{path}: got the name {describe_value(key)}, expected text; put it in quotes"
                )
        return {key: _parse(args[1], item, f"{path}.{key}", errors) for key, item in value.items()}
    elif (result := _parse_scalar(annotation, value)) is not _NO_VALUE:
        return result
    errors.append(f"{path}: got {describe_value(value)}, expected {describe_type(annotation)}")
    return None


_NO_VALUE = object()


def _parse_scalar(annotation: Any, value: Any) -> Any:
    if ranges := _ranges(annotation):
        number = _parse_scalar(get_args(annotation)[0], value)
        return number if number is not _NO_VALUE and number in ranges[0] else _NO_VALUE
    if get_origin(annotation) is Literal:
        return value if isinstance(value, str) and value in get_args(annotation) else _NO_VALUE
    if annotation is float:
        number = math.nan
        # PyYAML reads 1e-4 as text. YAML 1.2 and people read it as a number.
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            number = float(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            number = value
        return float(number) if -1e100 < number < 1e100 else _NO_VALUE  # neither inf nor nan
    return value if type(value) is annotation else _NO_VALUE


def _ranges(annotation: Any) -> list[Range]:
    return [one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Range)]


def describe_value(value: Any) -> str:
    """Describe a value for a message, to follow "got"."""
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, list | tuple):
        return f"the list {list(value)}"
    if isinstance(value, Mapping):
        return "a section with keys"
    return "nothing" if value is None else str(value).lower()  # true and false as in YAML


def describe_type(annotation: Any) -> str:
    """Describe a type for a message, to follow "expected"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return f"a section of {', '.join(item.name for item in dataclasses.fields(annotation))}"
    if origin is Annotated:
        return " ".join([describe_type(args[0]), *map(str, _ranges(annotation))])
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in args)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin is dict:
        return f"different names, each with {describe_type(args[1])}"
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each item {describe_type(args[0])}"
        return f"a list of {len(args)}, each {describe_type(args[0])}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "text (in quotes if it looks like a number)",
        bool: "true or false",
        types.NoneType: "null",
    }
    return words[annotation]
