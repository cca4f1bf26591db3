"""Annotations of other tools -> a folder of images, masks and label images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from unet.data.annotations.find_images import Matches, list_images, match_images
from unet.data.annotations.formats import read_annotations
from unet.data.annotations.paint import Order, Tally, paint
from unet.data.annotations.regions import Size
from unet.data.annotations.source import Annotations, Entry, Shape
from unet.data.annotations.target import Target
from unet.data.classes import IGNORE_INDEX, ClassMap, Colour
from unet.data.image_io import read_header
from unet.runtime.progress import show_progress
from unet.runtime.text import format_list, group_messages, join_some, plural, shorten

BACKGROUND = "background"
_BACKGROUNDS = ("background", "_background_")  # labelme writes the second
_IGNORED = "__ignore__"  # likewise
_LONGEST_NAME = 100
_MOST_CLASSES = 253  # with the background

Empty = Literal["background", "skip"]


@dataclass(kw_only=True)
class Imported:
    """What was imported.

    Args:
        format: the name of the format.
        classes: names and mask values.
        ignored: whether pixels to ignore have the value 255.
        validation: the file in the folder that lists the images of a validation split.
        warnings: what was left out.
        notes: how it was read.
        num_images: number of written images.
        objects: number of objects of each class.
        pixels: number of pixels of each mask value.
    """

    format: str
    classes: dict[str, int]
    ignored: bool = False
    validation: str | None = None
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_images: int = 0
    objects: Counter[str] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)

    def table(self) -> list[list[str]]:
        """Return the classes as rows: name, mask value, objects, fraction of the pixels."""
        rows = [["class", "value", "objects", "pixels"]]
        values = self.classes | ({"(ignored)": IGNORE_INDEX} if self.ignored else {})
        for name, value in values.items():
            objects = str(self.objects[name]) if 0 < value < IGNORE_INDEX else ""
            fraction = self.pixels[value] / self.pixels.total()
            rows.append([name, str(value), objects, f"{fraction:.2%}"])
        return rows


def import_annotations(
    source: Path,
    images: Path,
    out: Path,
    order: Order = "file",
    empty: Empty | None = None,
    instances: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Write the folders images (hard links, else copies), masks and instances in `out`.

    Nothing is written unless everything can be.

    Args:
        source: a file or folder of annotations.
        images: the folder of the images; `out/images` stays as it is.
        out: the folder of the data set.
        order: which of overlapping shapes is on top: the later one of the file, or the smaller one.
        empty: what happens to images without objects; None makes those that the annotations name
            background, and leaves out the others.
        instances: whether to write label images, with a number for each object.
        overwrite: whether to replace an earlier import.

    Raises:
        FileExistsError: if `out` holds other files.
        FileNotFoundError: if a file or folder is missing.
        ValueError: if annotations cannot be read, or do not fit the images.
    """
    with Target(out, images, overwrite) as target:
        name, found = read_annotations(source, target.owns)
        values, colours = _list_classes(found, source)
        result = Imported(format=name, classes=values, notes=[*found.notes])
        names = list_images(images, target.owns)
        matches = _match(found, names, images, source, result)
        chosen = _choose(found, matches, images, empty, target.in_place, result)
        sizes = _check_sizes(matches, chosen, images)
        classes = ClassMap({name: value for name, value in values.items() if value < IGNORE_INDEX})
        palette = _palette(classes, colours)
        tally = Tally()
        for image in show_progress([*chosen], "import", "image"):
            painted = paint(chosen[image], sizes[image], values, order, tally, image)
            target.write_mask(image, painted.ids, palette)
            if instances:
                target.write_label_image(image, painted.numbers)
            target.add_image(image)
            result.pixels.update(dict(enumerate(np.bincount(painted.ids.ravel()).tolist())))
        result.objects, result.num_images = tally.objects, len(chosen)
        result.ignored = result.pixels[IGNORE_INDEX] > 0
        result.classes = dict(zip(classes.names, range(len(classes.names)), strict=True))
        result.notes += tally.notes(order)
        unused = [name for name in classes.names[1:] if not tally.objects[name]]
        if unused:
            result.notes.append(
                f"{plural(len(unused), 'class', 'classes')} without objects: {join_some(unused)}; "
                "the config may leave them out"
            )
        result.warnings += _count(found.left_out + tally.left_out)
        if not tally.objects:
            raise ValueError("\n".join([f"{source}: no image has a region", *result.warnings]))
        held_out = [one for one in chosen if _split_of(found, images, one) == "val"]
        if len(held_out) == len(chosen):
            held_out = []
            result.notes.append("all images are of the validation split: the config splits them")
        result.validation = target.write_validation(held_out)
        mark = {"source": str(source), "format": name, "classes": result.classes}
        mark["colours"] = {one: colours[one] for one in result.classes if one in colours}
        target.finish({**mark, "ignored": result.ignored})
    return result


def _list_classes(
    annotations: Annotations, source: Path
) -> tuple[dict[str, int], dict[str, Colour]]:
    """Return the mask value of each class, and the colours of those that have one."""
    found = annotations.classes
    backgrounds = [name for name in found if name.lower() in _BACKGROUNDS]
    names = [name for name in found if name not in backgrounds and name != _IGNORED]
    if not names:
        lines = [f"{source}: has no classes; give annotations with regions"]
        raise ValueError("\n".join([*lines, *_count(annotations.left_out)]))
    for name in names:
        if not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
            raise ValueError(
                f"{source}: got the class {shorten(repr(name))}, expected a name of 1 to "
                f"{_LONGEST_NAME} printable characters; rename it in the annotations"
            )
    if len(names) >= _MOST_CLASSES:
        raise ValueError(
            f"{source}: got {len(names)} classes, expected at most {_MOST_CLASSES - 1}; merge "
            "classes in the annotations"
        )
    values = {(backgrounds or [BACKGROUND])[0]: 0, **{name: i for i, name in enumerate(names, 1)}}
    values |= dict.fromkeys(backgrounds, 0)
    if _IGNORED in found:
        values[_IGNORED] = IGNORE_INDEX
    return values, {name: colour for name, colour in found.items() if colour is not None}


def _palette(classes: ClassMap, colours: Mapping[str, Colour]) -> list[Colour]:
    """Return the colours of all mask values; those to ignore are white."""
    own = [
        colours.get(name, usual) for name, usual in zip(classes.names, classes.colours, strict=True)
    ]
    return [*own, *[(0, 0, 0)] * (IGNORE_INDEX - len(own)), (255, 255, 255)]


def _match(
    found: Annotations, names: Sequence[str], images: Path, source: Path, result: Imported
) -> Matches:
    """Find the images of all entries, and make the shapes that depend on them."""
    matches = match_images(found.entries, names, images)
    if matches.errors:
        raise ValueError(format_list(matches.errors))
    if all(read_header(images / name).has_place for name in names):
        for entry in [one for one in matches.missing if one.everywhere]:
            matches.missing.remove(entry)
            result.notes.append(_use_everywhere(entry, matches, images))
    missing = [entry.image for entry in matches.missing]
    if len(missing) == len(found.entries):
        raise ValueError(
            f"{source}: got annotations of {plural(len(missing), 'image')}, such as "
            f"{missing[0] if missing else 'none'}, expected some of the images in {images}, such "
            f"as {names[0]}; give the folder of the annotated images"
        )
    if missing:
        result.warnings.append(
            f"{len(missing)} of {len(found.entries)} annotated images are not in {images}, such as "
            f"{missing[0]}: their annotations are left out"
        )
    for image, entries in matches.entries.items():
        for entry in entries:
            if entry.locate is not None:
                entry.shapes = entry.locate(images / image)
    return matches


def _use_everywhere(entry: Entry, matches: Matches, images: Path) -> str:
    """Add a map to the entries of all images, and return a note."""
    assert entry.locate is not None
    used: set[int] = set()
    for image, entries in matches.entries.items():
        size = read_header(images / image).upright_size
        shapes = entry.locate(images / image)
        inside = [i for i, one in enumerate(shapes) if one.region.fill(size).mask.any()]
        used.update(inside)
        entries.append(Entry(entry.image, entry.place, shapes=[shapes[i] for i in inside]))
    return (
        f"{entry.place} is a map of all images; {plural(len(shapes) - len(used), 'region')} of "
        f"{len(shapes)} outside of them"
    )


def _choose(
    found: Annotations,
    matches: Matches,
    images: Path,
    empty: Empty | None,
    in_place: bool,
    result: Imported,
) -> dict[str, list[Shape]]:
    """Choose the images to write, and note those without objects."""
    chosen: dict[str, list[Shape]] = {}
    left_out: dict[str, list[str]] = {"without objects": [], "of the split test": []}
    background = []
    for image, entries in matches.entries.items():
        shapes = [shape for entry in entries for shape in entry.shapes]
        is_listed = bool(entries) or found.all_listed
        is_kept = empty == "background" or (empty is None and is_listed)
        if _split_of(found, images, image) == "test":
            left_out["of the split test"].append(image)
        elif shapes or is_kept:
            chosen[image] = shapes
            if not shapes:
                background.append(image)
        else:
            left_out["without objects"].append(image)
    if several := [image for image, entries in matches.entries.items() if len(entries) > 1]:
        result.notes.append(
            f"{plural(len(several), 'image')} with several annotations, which are drawn together, "
            f"such as {several[0]}"
        )
    if background:
        result.notes.append(
            f"{plural(len(background), 'image')} without objects, such as {background[0]}: all "
            "background; empty=skip leaves them out"
        )
    for why, some in left_out.items():
        if some and in_place:
            raise ValueError(
                f"{images}: got {plural(len(some), 'image')} {why}, such as {some[0]}, which would "
                "have no mask, as images that are in the output folder stay there; import into "
                "another folder, or with empty=background"
            )
        if some:
            result.notes.append(f"left out {plural(len(some), 'image')} {why}, such as {some[0]}")
    return chosen


def _check_sizes(matches: Matches, chosen: Mapping[str, object], images: Path) -> dict[str, Size]:
    """Return the size of each image, which must be that of its annotations."""
    sizes, errors = dict[str, Size](), list[tuple[str, str]]()
    stems: dict[str, str] = {}
    for image in chosen:
        header = read_header(images / image)
        sizes[image] = size = header.upright_size
        if header.pages > 1:
            text = f"got {header.pages} pages, expected one image; save each page as a file"
            errors.append((str(images / image), text))
        stem = image.rpartition(".")[0]
        if (other := stems.setdefault(stem, image)) != image:
            text = f"differs from {other} only in its ending; rename one"
            errors.append((str(images / image), text))
        for entry in matches.entries[image]:
            if entry.size not in (None, size):
                text = (
                    f"got {size[0]} x {size[1]} pixels (height x width), expected "
                    f"{entry.size[0]} x {entry.size[1]} as {entry.place} says; "
                )
                turned = header.orientation != 1 and entry.size == header.size
                text += (
                    "it was annotated without its EXIF orientation: save it without"
                    if turned
                    else "give the images that were annotated"
                )
                errors.append((str(images / image), text))
    if errors:
        raise ValueError(format_list(group_messages(errors, "images")))
    return sizes


def _split_of(found: Annotations, images: Path, image: str) -> str:
    """Return the split of an image, such as val; empty if there is none."""
    path = f"/{(images / image).resolve().as_posix()}/"
    return next((split for part, split in found.splits.items() if f"/{part}/" in path), "")


def _count(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """Say what was left out, how often, and where."""
    groups: dict[str, list[str]] = {}
    for image, what in left_out:
        groups.setdefault(what, []).append(image)
    return [
        f"left out {what}"
        + (f" ({len(places)} times)" if len(places) > 1 else "")
        + f", such as in {places[0]}"
        for what, places in groups.items()
    ]
