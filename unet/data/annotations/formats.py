"""The format of annotations, and its reader."""

from collections.abc import Callable, Sequence
from pathlib import Path

from unet.data.annotations import (
    coco,
    cvat,
    geojson,
    imagej,
    label_studio,
    labelme,
    run_lengths,
    via,
    yolo,
)
from unet.data.annotations.source import SPLITS, Annotations, load_json
from unet.data.file_list import list_files
from unet.data.pairing import natural_key
from unet.runtime.files import no_such

_JSON_FORMATS = (coco, labelme, geojson, label_studio, via)
_FILE_READERS: dict[str, tuple[str, Callable[[Path], Annotations]]] = {
    ".xml": (cvat.NAME, cvat.read),
    ".csv": (run_lengths.NAME, run_lengths.read),
    ".yaml": (yolo.NAME, yolo.read),
    ".yml": (yolo.NAME, yolo.read),
    **dict.fromkeys(imagej.SUFFIXES, (imagej.NAME, imagej.read)),
}
_JSON = (".json", ".geojson")
_KNOWN = ", ".join(one.NAME for one in (*_JSON_FORMATS, cvat, yolo, run_lengths, imagej))


class UnknownFormatError(ValueError):
    """The file is of no known format."""


def read_annotations(
    source: Path, is_excluded: Callable[[Path], bool] = lambda _: False
) -> tuple[str, Annotations]:
    """Read a file, or all files of a folder, which must be of one format.

    Args:
        source: the file or folder.
        is_excluded: whether a path in the folder is to be left out.

    Returns:
        The name of the format, and what the files hold.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file cannot be read, or is of no known format.
    """
    if not source.exists():
        raise FileNotFoundError(no_such(source, "file or folder"))
    if source.is_file():
        return _read_file(source)
    name, found = "", Annotations()
    unknown: list[UnknownFormatError] = []
    paths = _list_annotations(source, is_excluded)
    instances = [path for path in paths if path.name.startswith(coco.PREFIX)] or paths
    for path in paths:
        if path not in instances:
            found.left_out.append((str(path), f"a file next to {coco.PREFIX}*"))
            continue
        try:
            kind, one = _read_file(path)
        except UnknownFormatError as error:
            unknown.append(error)
            found.left_out.append((str(path), "a file of an unknown format"))
            continue
        if name and kind != name:
            raise ValueError(
                f"{source}: contains files of {name} and of {kind}, such as {path}; import one "
                "format at a time"
            )
        name = kind
        if kind == coco.NAME and len(instances) > 1:
            one.splits = _find_split(path.relative_to(source))
        found.splits |= one.splits
        found.all_listed |= one.all_listed
        found.extend(one)
    if unknown and not name:
        raise unknown[0]
    return name, found


def _find_split(path: Path) -> dict[str, str]:
    """Return the split of a file such as valid/annotations.json or instances_val2017.json."""
    for part in (*path.parts[:-1], path.stem.removeprefix(coco.PREFIX)):
        if split := SPLITS.get(part.lower().rstrip("0123456789")):
            return {part: split}
    return {}


def _list_annotations(folder: Path, is_excluded: Callable[[Path], bool]) -> Sequence[Path]:
    """List the files of a folder that hold annotations; those of one ending suffice."""
    paths = [path for path in map(Path, list_files(folder)) if not is_excluded(path)]
    paths.sort(key=lambda path: natural_key(str(path)))
    yamls = [path for path in paths if path.suffix.lower() in (".yaml", ".yml")]
    lists = [path for path in paths if path.name == yolo.CLASSES_FILE]
    if files := [*filter(yolo.matches, yamls)] or lists:
        return files
    for suffixes in (_JSON, (".xml",), (".csv",), imagej.SUFFIXES):
        if files := [path for path in paths if path.suffix.lower() in suffixes]:
            return files
    raise ValueError(
        f"{folder}: contains no annotations, which may be {_KNOWN} (.json, .geojson, .xml, .yaml, "
        ".csv, .zip or .roi)"
    )


def _read_file(path: Path) -> tuple[str, Annotations]:
    suffix = path.suffix.lower()
    if suffix == ".csv" and via.is_csv(path):
        return via.NAME, via.read_csv(path)
    if suffix in _FILE_READERS:
        name, read = _FILE_READERS[suffix]
        return name, read(path)
    if path.name == yolo.CLASSES_FILE:
        return yolo.NAME, yolo.read(path)
    if suffix in _JSON:
        data = load_json(path)
        for module in _JSON_FORMATS:
            if module.matches(data):
                return module.NAME, module.read(data, path)
    raise UnknownFormatError(f"{path}: got annotations of an unknown format, expected {_KNOWN}")
