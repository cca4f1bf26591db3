from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from unet.config.parsing import Error, Range, describe_value, parse_section


@dataclass(frozen=True, kw_only=True)
class Inner:
    ratio: Annotated[float, Range(minimum=0, maximum=1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: Annotated[int, Range(minimum=1)]
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    either: int | Inner | None = None
    inner: Inner = field(default_factory=Inner)


def read(value: Any) -> tuple[Any, list[str]]:
    errors: list[Error] = []
    result = parse_section(Outer, value, "outer", errors)
    return result, [f"{path}: {problem}" for path, problem in errors]


def test_values_that_fit_become_the_dataclass() -> None:
    value = {"count": 2, "kind": "b", "sizes": [1, 2], "inner": {"ratio": "2.5e-1"}}
    result, errors = read(value)
    assert not errors
    assert result == Outer(count=2, kind="b", sizes=(1, 2), inner=Inner(ratio=0.25))
    result, errors = read({"count": 1, "either": {"ratio": 1}})
    assert not errors
    assert result.either == Inner(ratio=1.0)


def test_every_error_is_added_with_its_path() -> None:
    _, errors = read(
        {"kind": "c", "sizes": [1, "x"], "inner": {"raito": 2}, "either": {"ratio": 3}}
    )
    assert errors == [
        "outer.count: missing, expected a whole number at least 1",
        "outer.kind: got the text 'c', expected one of a, b",
        "outer.sizes[1]: got the text 'x', expected a whole number",
        "outer.either.ratio: got 3, expected a number from 0 to 1",
        "outer.inner.raito: unknown setting",
    ]


def test_a_section_must_be_a_mapping() -> None:
    for value, shown in ((None, "nothing"), ([1], "the list [1]"), (True, "true")):
        assert read(value)[1][0].startswith(f"outer: got {shown}, expected a section of count")
        assert describe_value(value) == shown
