"""Write docs/configuration.md: every setting with its type, default and meaning.

The page is generated from the types, the defaults and the field comments of the schema. A test
checks that the page is up to date.

    python scripts/write_configuration_docs.py
"""

import argparse
import ast
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from unet.config.data_schema import MaskValues, MayChange
from unet.config.parsing import describe_type
from unet.config.schema import Config

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """\
# Configuration

<!-- Written by scripts/write_configuration_docs.py from the schema in unet/config. Do not edit. -->

Look up the type, default and meaning of each setting on this page. A config is a YAML file. Only
`data.root`, `data.classes`, `data.validation` and `train.epochs` are required. You can also change
every setting on the command line, for example `unet train configs/mine.yaml optimizer.lr=3.0e-4`.
`null` means that a setting is not set. Unknown keys, values of the wrong type and settings that
exclude each other are errors.

The last column shows when you can change a setting after training has started: *resume* means with
`unet train --resume`, and *use* means with `unet evaluate`, `predict`, `export` or `info`. All
other settings are fixed for the trained model.
"""
CHANGES = {
    MayChange(0): "",
    MayChange.ON_RESUME: "resume",
    MayChange.IN_USE: "use",
    MayChange.ON_RESUME | MayChange.IN_USE: "resume, use",
}


def configuration_page() -> str:
    """Return the text of docs/configuration.md."""
    return HEAD + "".join(_section("", Config, "The run", MayChange(0)))


def _section(path: str, section: Any, title: str, inherited: MayChange) -> Iterator[str]:
    """Yield the heading, introduction and table of a section, then its inner sections."""
    comments, hints = _comments(section), get_type_hints(section, include_extras=True)
    yield f"\n## {title}\n\n{' '.join(str(inspect.getdoc(section)).split())}\n\n"
    yield "| Setting | Type | Default | Meaning | May change |\n|---|---|---|---|---|\n"
    inner = []
    for field in dataclasses.fields(section):
        hint, name = hints[field.name], path + field.name
        marks = [mark for mark in get_args(hint) if isinstance(mark, MayChange)]
        change = marks[0] if marks else inherited
        inner += [
            (f"{name}.", option, f"`{name}`", change)
            for option in (hint, *get_args(hint))
            if isinstance(option, type) and dataclasses.is_dataclass(option)
        ]
        if field.name in comments:
            words = (
                _type_in_words(hint),
                _default(name, field),
                comments[field.name],
                CHANGES[change],
            )
            yield f"| {' | '.join(('`' + name + '`', *words))} |\n"
    for one in inner:
        yield from _section(*one)


def _comments(section: Any) -> dict[str, str]:
    """Return the comment above each field of a dataclass."""
    lines = inspect.getsource(section).splitlines()
    comments = {}
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno - 1
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            if texts := [line.strip(" #") for line in lines[first : node.lineno - 1]]:
                comments[node.target.id] = " ".join(texts)
    return comments


def _type_in_words(hint: Any) -> str:
    if hint == tuple[MaskValues, ...]:
        return "a list of mask values"
    return describe_type(hint).replace(" (in quotes if it looks like a number)", "")


def _default(name: str, field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "the file's name" if name == "name" else "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    argparse.ArgumentParser(description=str(__doc__).partition("\n")[0]).parse_args()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(configuration_page(), encoding="utf-8")
    print(f"wrote {PAGE}")
