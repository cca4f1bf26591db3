"""Tables of run lengths as on Kaggle: a row for each object, or for each image and class.

Source: the evaluation pages of Kaggle's 2018 Data Science Bowl and of later competitions: pairs of
start and length, numbered from 1, from top to bottom, then from left to right.
"""

import csv
from pathlib import Path

from unet.data.annotations.regions import Runs
from unet.data.annotations.source import OBJECT, Annotations, Entry, counts, wrong
from unet.data.image_types import SUFFIXES

NAME = "run lengths"

_IMAGE = ("imageid", "image", "filename", "imagename", "img", "file", "id")
_RUNS = ("encodedpixels", "rle", "encoding", "rlemask", "annotation", "segmentation", "pixels")
_CLASS = ("classid", "class", "label", "category", "celltype", "classname")
_BOTH = ("imagelabel", "imageidclassid", "imageclass", "imageidclass")


def read(path: Path) -> Annotations:
    """Read a CSV file.

    Raises:
        ValueError: if it has no such columns, or a row is wrong.
    """
    csv.field_size_limit(2**31 - 1)
    found, entries = Annotations(), dict[str, Entry]()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = {_plain(name): name for name in reader.fieldnames or () if name}
            both = next((columns[name] for name in _BOTH if name in columns), None)
            image = both or next((columns[name] for name in _IMAGE if name in columns), None)
            runs = next((columns[name] for name in _RUNS if name in columns), None)
            kind = next((columns[name] for name in _CLASS if name in columns), None)
            if image is None or runs is None:
                raise ValueError(
                    f"{path}: got the columns {', '.join(columns.values()) or '(none)'}, expected "
                    "one of image names and one of run lengths, such as ImageId and EncodedPixels"
                )
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                name = row[image]
                if not name:
                    raise wrong(where, image, name, "the name of an image")
                label = (row[kind] if kind else "") or OBJECT
                if both is not None:
                    name, label = _split(name)
                entry = entries.setdefault(name, Entry(name, str(path)))
                _add(found, entry, label, row[runs] or "", where)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8") from error
    found.entries = list(entries.values())
    found.notes["run lengths are read down the columns, from pixel 1"] = None
    return found


def _split(both: str) -> tuple[str, str]:
    """Split IMAGE.jpg_CLASS, whose class may contain "_", or IMAGE_CLASS, whose image may."""
    for end in sorted(SUFFIXES):
        name, found, label = both.partition(f"{end}_")
        if found:
            return name + end, label
    name, _, label = both.rpartition("_")
    return name, label


def _plain(column: str) -> str:
    return column.lower().replace("_", "").replace(" ", "")


def _add(found: Annotations, entry: Entry, label: str, text: str, where: str) -> None:
    found.classes.setdefault(label, None)
    words = text.split()
    if not words or words == ["-1"]:  # no object
        return
    values = counts(words, "run lengths", where)
    if len(values) % 2 or values[0::2].min() < 1:
        raise wrong(where, "run lengths", text, "pairs of start and length, from 1")
    found.add(entry, label, Runs(values[0::2] - 1, values[1::2], by_column=True))
