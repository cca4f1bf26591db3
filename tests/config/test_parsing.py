from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from unet.config.parsing import Range, describe_value, load_yaml, override, read_section


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: Annotated[float, Range(minimum=0, maximum=1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: Annotated[int, Range(minimum=1)]
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    either: int | Inner | None = None
    inner: Inner = field(default_factory=Inner)


def read(value: Any) -> tuple[Any, list[str]]:
    faults: list[str] = []
    return read_section(Outer, value, "outer", faults), faults


def test_what_fits_becomes_the_dataclass() -> None:
    value = {"count": 2, "kind": "b", "sizes": [1, 2], "inner": {"share": "2.5e-1"}}
    result, faults = read(value)
    assert not faults
    assert result == Outer(count=2, kind="b", sizes=(1, 2), inner=Inner(share=0.25))
    result, faults = read({"count": 1, "either": {"share": 1}})
    assert not faults
    assert result.either == Inner(share=1.0)


def test_every_fault_is_added_with_its_path() -> None:
    _, faults = read(
        {"kind": "c", "sizes": [1, "x"], "inner": {"shrae": 2}, "either": {"share": 3}}
    )
    assert faults == [
        "outer.count: missing, expected a whole number at least 1",
        "outer.kind: got the text 'c', expected one of a, b",
        "outer.sizes[1]: got the text 'x', expected a whole number",
        "outer.either.share: got 3, expected a number at least 0 and at most 1",
        "outer.inner.shrae: unknown key; did you mean outer.inner.share?",
    ]


def test_a_section_must_be_one() -> None:
    for value, shown in ((None, "nothing"), ([1], "the list [1]"), (True, "true")):
        assert read(value)[1][0].startswith(f"outer: got {shown}, expected a section of count")
        assert describe_value(value) == shown


def test_yaml_holds_a_key_once() -> None:
    assert load_yaml("a: 1\nb: [2, 3]") == {"a": 1, "b": [2, 3]}
    with pytest.raises(ValueError, match="is not YAML: the key 'a' stands here twice"):
        load_yaml("a: 1\na: 2")
    with pytest.raises(ValueError, match="is not YAML: "):
        load_yaml(b"\x80PK\x03")


def test_overrides_reach_into_sections_and_change_nothing_else() -> None:
    faults: list[str] = []
    before = {"inner": {"share": 0.1}, "count": 1}
    after = override(before, ["inner.share=0.3", "sizes=[4]", "count", "kind=["], faults)
    assert after == {"inner": {"share": 0.3}, "count": 1, "sizes": [4]}
    assert before == {"inner": {"share": 0.1}, "count": 1}
    assert faults[0] == "'count': expected an override such as train.epochs=5"
    assert faults[1].startswith("'kind=[': is not YAML: ")
