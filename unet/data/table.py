"""Pairs of files from a CSV table."""

import csv
from pathlib import Path

from unet.data.image_types import DEFAULT_OPTIONS, ReadOptions
from unet.data.pairing import Pair, split_stacks
from unet.runtime.text import group_messages


def read_table(
    root: Path, table: str, stacks: bool = False, options: ReadOptions = DEFAULT_OPTIONS
) -> tuple[list[Pair], list[str]]:
    """Read pairs from a CSV file with the columns image, mask and, if there is one, split.

    The table and its paths are relative to `root`. Returns the pairs in the table's order, and
    errors: missing files, incomplete rows, files that occur twice.

    Raises:
        ValueError: if the table lacks a column or has no rows.
    """
    path, wrong = root / table, []
    rows = _read_rows(path)
    pairs: dict[str, Pair] = {}
    used = {row["image"] for _, row in rows}
    for number, row in rows:
        image, mask, where = row["image"], row["mask"], f"{path}: line {number}"
        if not (image and mask):
            wrong.append((where, "lacks an image or a mask; complete it"))
            continue
        stem = Path(image).with_suffix("").as_posix()
        if missing := [name for name in (image, mask) if not (root / name).is_file()]:
            wrong.append((where, f"there is no file {root / missing[0]}; correct the path"))
        elif stem in pairs:
            first = pairs[stem].images[0]
            text = f"{root / image} has the same stem as {first}; remove or rename"
            wrong.append((where, f"{text} one"))
        elif mask in used:
            text = f"{root / mask} occurs twice, expected every file once; correct one"
            wrong.append((where, text))
        else:
            used |= {image, mask}
            files = (str(root / image),), (str(root / mask),)
            pairs[stem] = Pair(stem, *files, split=row.get("split") or "")
    found, errors = list(pairs.values()), group_messages(wrong, "rows")
    return (split_stacks(found, errors, options) if stacks else found), errors


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table with their line numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such table; check data.csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8") from error
    if lacking := {"image", "mask"} - set(columns):
        raise ValueError(
            f"{path}: got the columns {', '.join(columns) or '(none)'}, expected "
            f"{' and '.join(sorted(lacking))} too, separated by commas"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}: got a column twice in {', '.join(columns)}; remove one")
    if not rows:
        raise ValueError(f"{path}: has no rows, expected one for each image")
    return rows
