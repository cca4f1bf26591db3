"""The origin of a mask: a text in its file says which checkpoints and options predicted it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unet.config.values import flat_settings
from unet.data.tiff_tags import read_tags
from unet.inference.predictor import Model

_SETTINGS = ("tiling.size", "tiling.overlap", "train.precision")
IMAGE_DESCRIPTION = 270
"""The tag of a TIFF that has the text."""


def describe_origin(
    checkpoints: Sequence[Path], model: Model, options: dict[str, Any]
) -> dict[str, Any]:
    """Return what a mask depends on, apart from its image: checkpoints, options and settings.

    The contents of the checkpoints count, not their names; `model` was loaded from them.
    """
    digests = []
    for path in checkpoints:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest()[:32])
    members = [flat_settings(member.config) for member in model.members]
    settings = {name: [values[name] for values in members] for name in _SETTINGS}
    values = {"checkpoints": digests, **options, **settings}
    origin: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists
    return origin


def check_origin(mask: Path, origin: dict[str, Any]) -> None:
    """Raise FileExistsError if an existing mask has another origin, or none."""
    found = _read_origin(mask)
    if found == origin:
        return
    if found is None:
        reason = ", and nothing in it says what predicted it"
    elif found.get("checkpoints") != origin["checkpoints"]:
        reason = " and was predicted by another checkpoint"
    else:
        reason = " and was predicted with " + ", ".join(
            f"{key} {_in_words(found.get(key))} instead of {_in_words(value)}"
            for key, value in origin.items()
            if found.get(key) != value
        )
    raise FileExistsError(
        f"{mask}: exists{reason}; pass overwrite=True to predict it again, or write to another "
        "folder"
    )


def _read_origin(mask: Path) -> dict[str, Any] | None:
    try:
        if mask.suffix == ".tif":
            text = read_tags(mask).get(IMAGE_DESCRIPTION)
        else:
            with Image.open(mask) as image:
                text = image.info.get("Description")
        origin = json.loads(text or "null")
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for broken files
        return None
    return origin if isinstance(origin, dict) else None


def _in_words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_in_words, value)) or "none"
    return "none" if value is None else str(value)
