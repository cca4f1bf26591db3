"""A folder without pairs of images and masks -> what is in it, and what helps."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median

from unet.data.image_file import other_format
from unet.data.image_types import SUFFIXES
from unet.inspection.file_groups import split_name
from unet.runtime.text import join_some

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")
_ANNOTATIONS = (".json", ".geojson", ".xml", ".csv", ".txt")


def describe_unpaired(paths: Sequence[str]) -> list[str]:
    """Count the files by their endings, and say what they suggest to do."""
    endings = Counter(Path(path).suffix.lower() or "(no ending)" for path in paths)
    shown = join_some([f"{count} {ending}" for ending, count in endings.most_common()])
    return [shown or "no file", *_list_hints(sorted(paths))]


def find_object_masks(root: Path, paths: Sequence[str]) -> str | None:
    """Describe folders of images that have a mask file for each object; None if there are none."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        if path.lower().endswith(tuple(SUFFIXES)):
            folder, _, name = path.rpartition("/")
            names[folder].append(name)
    above: defaultdict[str, list[str]] = defaultdict(list)
    for folder in names:
        above[folder.rpartition("/")[0]].append(folder)
    objects: dict[str, list[str]] = {}
    for folders in above.values():
        if len(folders) == 2:
            images, masks = sorted(folders, key=lambda one: len(names[one]))
            if len(names[images]) == 1:
                objects[masks] = names[masks]
    counts = [len(some) for some in objects.values()]
    different = {name for some in objects.values() for name in some}
    # Names that all images have, such as cell.png, are classes.
    if len(counts) < 2 or median(counts) < 2 or 2 * len(different) < sum(counts):
        return None
    example = max(objects, key=lambda one: len(objects[one]))
    tables = [path for path in paths if path.endswith(".csv")]
    advice = "join the masks of each image in one file, a label image with a number for each object"
    if tables:
        advice += (
            f", or try unet import {tables[0]}, if this table has the run lengths of the masks"
        )
    return (
        f"{root}: got one mask file for each object, such as {len(objects[example])} in {example}, "
        f"expected one mask for each image, or one for each class; {advice}"
    )


def _list_hints(paths: Sequence[str]) -> Iterator[str]:
    if archives := [path for path in paths if path.lower().endswith(_ARCHIVES)]:
        yield f"unpack {join_some(archives, 3)}"
    for reason in dict.fromkeys(
        filter(None, map(other_format, map(Path, paths[:: len(paths) // 50 or 1])))
    ):
        yield f"some files are not read: {reason}"
    annotations = [path for path in paths if path.lower().endswith(_ANNOTATIONS)]
    if annotations and not archives:
        yield (
            f"if files such as {annotations[0]} contain outlines, run lengths or other "
            "annotations, unet import turns them into masks"
        )
    numbers: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in paths:
        folder, stem, ending = split_name(path)
        if ending.lower() in SUFFIXES and (number := re.search(r"\d+", stem)):
            numbers[folder].setdefault(number[0], stem)
    largest = sorted(numbers, key=lambda one: -len(numbers[one]))[:12]
    for one, other in combinations(largest, 2):
        first, second = ({text.lstrip("0"): text for text in numbers[at]} for at in (one, other))
        common = [key for key in first.keys() & second.keys() if first[key] != second[key]]
        if common and 2 * len(first.keys() & second.keys()) > min(len(first), len(second)):
            names = numbers[one][first[min(common)]], numbers[other][second[min(common)]]
            yield (
                f"numbers in {one} and {other} differ in leading zeros, such as {names[0]} and "
                f"{names[1]}; rename the files of one folder"
            )
            return
