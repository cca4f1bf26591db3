"""Tables and lists as plain text."""

from collections.abc import Sequence


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
