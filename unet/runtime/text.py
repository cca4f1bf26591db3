"""Tables, lists and names as plain text."""

import re
import shutil
from collections.abc import Iterable, Sequence

# What differs between messages of the same kind: paths and numbers.
_VARIABLE = re.compile(r"\S*/\S*|\d[\d.,%]*")

# Control characters, line separators, marks that reverse the direction of text, and surrogates,
# which stand for the bytes of a file name that is not UTF-8.
_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal would act on instead of show, such as ESC.

    Control characters in `keep` stay as they are.
    """
    return _UNPRINTABLE.sub(
        lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text
    )


def shorten(text: str, limit: int = 100) -> str:
    """Replace the middle of a text that is longer than the limit by dots."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]}...{text[3 - limit // 3 :]}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Return a number and a noun, such as `1 file` or `2 files`; None adds an s."""
    return f"{count} {noun if count == 1 else nouns or f'{noun}s'}"


def format_duration(seconds: float) -> str:
    """Format a duration with two digits: 0.35 s, 12 s, 4.5 minutes, 2.3 hours."""
    for size, unit in ((3600, "hours"), (60, "minutes"), (1, "s")):
        if seconds >= 1.5 * size or size == 1:
            number = seconds / size
            return f"{number:.0f} {unit}" if number >= 9.95 else f"{number:.2g} {unit}"
    raise AssertionError


def format_table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Align rows of text: the first column to the left, the others to the right.

    Columns that do not fit into `width`, by default that of the terminal, follow below with the
    first column again, whose texts are shortened first.
    """
    width = width or shutil.get_terminal_size().columns
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    others = sum(2 + needed for needed in widths[1:])
    widths[0] = min(widths[0], max(width - others, min(24, width // 2)))
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for i, needed in enumerate(widths[1:], 1):
        if blocks[-1] and used + 2 + needed > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(i)
        used += 2 + needed
    tables = []
    for block in blocks:
        lines = [
            "  ".join([name, *(row[i].rjust(widths[i]) for i in block)]).rstrip()
            for row in rows
            for name in [shorten(row[0], widths[0]).ljust(widths[0])]
            if not row[0] or any(row[i] for i in block)  # an empty row separates others
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


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
