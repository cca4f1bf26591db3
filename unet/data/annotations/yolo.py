"""YOLO segmentation: a text file for each image, a line for each object; names in a YAML file.

Source: "Instance Segmentation Datasets Overview" of docs.ultralytics.com.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from unet.data.annotations.source import Annotations, Entry, numbers, wrong
from unet.data.file_list import list_files
from unet.data.pairing import natural_key

NAME = "YOLO"
CLASSES_FILE = "classes.txt"
_SPLITS = ("train", "val", "test")


def matches(path: Path) -> bool:
    """Whether a YAML file has this format."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return re.search(r"^names\s*:", text, re.MULTILINE) is not None


def read(path: Path) -> Annotations:
    """Read a data.yaml, or a classes.txt of one name a line, with the labels next to it.

    Raises:
        ValueError: if it or a label file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = yaml.safe_load(text) if path.name != CLASSES_FILE else {"names": text.splitlines()}
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as YAML ({reason}); correct it") from error
    names = data.get("names") if isinstance(data, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise wrong(str(path), "names", names, "the names of the classes, as YOLO has them")
    names = {str(key): str(name) for key, name in names.items()}
    found = Annotations(classes=dict.fromkeys(names.values()), all_listed=True)
    found.splits = {part: split for split in _SPLITS for part in _parts(data.get(split), path)}
    paths = map(Path, list_files(path.parent))
    labels = [one for one in paths if one.suffix.lower() == ".txt" and "labels" in one.parts]
    for file in sorted(labels, key=lambda one: natural_key(str(one))):
        inner = file.relative_to(path.parent).with_suffix("")
        image = "/".join("images" if part == "labels" else part for part in inner.parts)
        entry = Entry(image, str(file))
        found.entries.append(entry)
        for name, ring, where in _read_lines(file, names):
            if len(ring) == 4:
                found.left_out.append((image, f'a box "{name}", no polygon'))
            elif len(ring) % 2:
                raise wrong(where, "coordinates", len(ring), "pairs x y")
            else:
                found.add_polygon(entry, name, [ring.reshape(-1, 2)], unit=None)
    if not labels:
        raise ValueError(
            f"{path}: there are no text files in a folder labels next to it, one for each image"
        )
    return found


def _parts(value: Any, path: Path) -> Iterator[str]:
    """Yield the parts of image paths that a split has: folders, or the names of a list of files."""
    for one in value if isinstance(value, list) else [value]:
        text = str(one or "").replace("\\", "/")
        if text.endswith(".txt"):
            listed = [path.parent / text, path.parent / Path(text).name]
            file = next((one for one in listed if one.is_file()), None)
            lines = file.read_text(encoding="utf-8").splitlines() if file else []
            yield from (line.strip().removeprefix("./") for line in lines if line.strip())
        elif text:
            # The path that the file gives is often that of another machine.
            yield "/".join(part for part in text.split("/") if part not in ("", ".", ".."))


def _read_lines(file: Path, names: dict[str, str]) -> Iterator[tuple[str, Any, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as text; export it again") from error
    for number, line in enumerate(lines, 1):
        where = f"{file}: line {number}"
        if words := line.split():
            index = words[0].removesuffix(".0")
            if index not in names:
                raise wrong(where, "the class", words[0], f"one of {', '.join(names)}")
            yield names[index], numbers(words[1:], "coordinates", where), where
