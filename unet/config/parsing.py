"""Plain values, as YAML has them -> dataclasses. Unknown or mistyped settings are errors."""

import dataclasses
import math
import re
import types
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from unet.runtime.text import printable, shorten

Error = tuple[str, str]  # the dotted path of a setting, and what is wrong with it

Mark = TypeVar("Mark")

UNKNOWN = "unknown setting"
_MOST_UNKNOWN = 10  # unknown settings of a section that are listed
_LONGEST_TEXT, _LONGEST_NAME = 10_000, 100


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of the length of a list.

    `minimum <= number <= maximum` and `above < number`.
    """

    minimum: float = -math.inf
    maximum: float = math.inf
    above: float = -math.inf

    def __contains__(self, number: float) -> bool:
        return self.minimum <= number <= self.maximum and self.above < number

    def __str__(self) -> str:
        if math.isfinite(self.minimum) and math.isfinite(self.maximum):
            return f"from {self.minimum} to {self.maximum}"
        bounds = {"at least": self.minimum, "above": self.above, "at most": self.maximum}
        return " and ".join(f"{word} {x}" for word, x in bounds.items() if math.isfinite(x))


@dataclass(frozen=True)
class Words:
    """How messages and docs describe a type whose own description would be long."""

    text: str


def parse_section(section: Any, value: Any, path: str, errors: list[Error]) -> Any:
    """Read a mapping as the dataclass `section`.

    Unknown and missing keys, values of another type and numbers out of range are appended to
    `errors`, with their dotted path below `path`. The result may only be used if there are none.
    """
    if not isinstance(value, Mapping):
        errors.append((path, _mismatch(section, value)))
        return None
    prefix = f"{path}." if path else ""
    hints = get_type_hints(section, include_extras=True)
    unknown = [str(key) for key in value if key not in hints]
    errors += [(prefix + key, UNKNOWN) for key in unknown[:_MOST_UNKNOWN]]
    if more := len(unknown[_MOST_UNKNOWN:]):
        errors.append((path or "config", f"got {more} more unknown settings"))
    known = {}
    for item in dataclasses.fields(section):
        name, hint = item.name, hints[item.name]
        if name in value:
            known[name] = _parse(hint, value[name], prefix + name, errors)
        elif item.default is item.default_factory is dataclasses.MISSING:
            if dataclasses.is_dataclass(hint) and prefix == "":  # name what it has to contain
                known[name] = parse_section(hint, {}, name, errors)
            else:
                errors.append((prefix + name, f"missing, expected {describe_type(hint)}"))
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


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value can be read as a type."""
    errors: list[Error] = []
    _parse(annotation, value, "", errors)
    return not errors


def _parse(annotation: Any, value: Any, path: str, errors: list[Error]) -> Any:
    """Return `value` as the annotation's type; if it does not fit, append to `errors`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return parse_section(annotation, value, path, errors)
    if origin is Annotated and (get_origin(args[0]) or not _marks(annotation, Range)):
        inner: list[Error] = []
        result = _parse(args[0], value, path, inner)
        lengths = _marks(annotation, Range)
        if not inner and lengths and isinstance(result, tuple) and len(result) not in lengths[0]:
            inner.append((path, ""))
        # The annotation says more than the type inside it.
        errors += [(at, _mismatch(annotation, value) if at == path else e) for at, e in inner]
        return result
    if origin in (Union, types.UnionType):
        for option in args:
            if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
                return parse_section(option, value, path, errors)
        for option in args:
            rejected: list[Error] = []
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
                problem = f"got the name {describe_value(key)}, expected text; put it in quotes"
                errors.append((f"{path}.{key}", problem))
            elif not _is_text(key, _LONGEST_NAME):
                problem = "got this name, expected 1 to 100 printable characters"
                errors.append((f"{path}.{key!r}", problem))
        return {key: _parse(args[1], item, f"{path}.{key}", errors) for key, item in value.items()}
    elif (result := _parse_scalar(annotation, value)) is not _NO_VALUE:
        return result
    errors.append((path, _mismatch(annotation, value)))
    return None


def _mismatch(annotation: Any, value: Any) -> str:
    problem = f"got {describe_value(value)}, expected {describe_type(annotation)}"
    for items in _item_types(annotation):
        if not isinstance(value, list | tuple) and fits(items[0], value):
            shown = ", ".join([str(value)] * (1 if items[-1] is Ellipsis else len(items)))
            return f"{problem}; write [{shorten(shown)}]"
    return problem


def _item_types(annotation: Any) -> list[tuple[Any, ...]]:
    """List the types of the items of each list that an annotation allows."""
    if get_origin(annotation) is tuple:
        return [get_args(annotation)]
    return [items for one in get_args(annotation) for items in _item_types(one)]


def _is_text(value: str, longest: int) -> bool:
    return 0 < len(value.strip()) <= longest and printable(value) == value


_NO_VALUE = object()


def _parse_scalar(annotation: Any, value: Any) -> Any:
    if ranges := _marks(annotation, Range):
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
    if isinstance(value, str) and not _is_text(value, _LONGEST_TEXT):
        return _NO_VALUE
    return value if type(value) is annotation else _NO_VALUE


def _marks(annotation: Any, mark: type[Mark]) -> list[Mark]:
    return [one for one in getattr(annotation, "__metadata__", ()) if isinstance(one, mark)]


def describe_value(value: Any) -> str:
    """Describe a value for a message, to follow "got"."""
    if isinstance(value, str):
        return f"the text {shorten(value)!r}" if value.strip() else "an empty text"
    if isinstance(value, list | tuple):
        return f"the list {shorten(str(list(value)))}"
    if isinstance(value, Mapping):
        return "a section with keys"
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python refuses to show it
        return "a number of thousands of digits"
    if isinstance(value, int | float | date):
        return shorten(str(value).lower())  # true and false as in YAML
    return "nothing" if value is None else f"a value of type {type(value).__name__}"


def describe_type(annotation: Any) -> str:
    """Describe a type for a message, to follow "expected"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return f"a section of {', '.join(item.name for item in dataclasses.fields(annotation))}"
    if words := _marks(annotation, Words):
        return words[0].text
    if origin is Annotated and get_origin(args[0]) is tuple and _marks(annotation, Range):
        bounds = _marks(annotation, Range)[0]
        each = describe_type(get_args(args[0])[0])
        return f"a list of {bounds.minimum} to {bounds.maximum} items, each {each}"
    if origin is Annotated:
        return " ".join([describe_type(args[0]), *map(str, _marks(annotation, Range))])
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
    names = {
        int: "a whole number",
        float: "a number",
        str: "text (in quotes if it looks like a number)",
        bool: "true or false",
        types.NoneType: "null",
    }
    return names[annotation]
