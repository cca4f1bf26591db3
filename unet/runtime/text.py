"""Docstring to be written."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows as text, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def listed(faults: Sequence[str], most: int = 10) -> str:
    """Faults, a line each, and how many more there are."""
    more = f"\n... and {len(faults) - most} more" if len(faults) > most else ""
    return "\n".join(faults[:most]) + more
