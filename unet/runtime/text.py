"""Tables and lists as plain text."""

import re
from collections.abc import Iterable, Sequence

# What differs between messages of the same kind: paths and numbers.
_VARIABLE = re.compile(r"\S*/\S*|\d[\d.,%]*")


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(x.rjust(n) for x, n in others)]))
    return "\n".join(line.rstrip() for line in lines)


def format_list(errors: Sequence[str], limit: int = 10) -> str:
    """Return one error per line, and the number of those over the limit."""
    more = f"\n... and {len(errors) - limit} more" if len(errors) > limit else ""
    return "\n".join(errors[:limit]) + more


def join_some(items: Sequence[str], limit: int = 5) -> str:
    """Join the first items with commas, and add the number of those over the limit."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def group_messages(messages: Iterable[tuple[str, str]], noun: str = "files") -> list[str]:
    """Join messages (place, text) whose texts differ only in numbers and paths, one line each."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for place, text in messages:
        groups.setdefault(_VARIABLE.sub("#", text), []).append((place, text))
    lines = []
    for (place, text), *others in groups.values():
        if others:
            also = join_some([other for other, _ in others], 2)
            lines.append(f"{1 + len(others)} {noun}, such as {place}: {text} (also {also})")
        else:
            lines.append(f"{place}: {text}")
    return lines
