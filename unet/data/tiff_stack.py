"""Stacks of pages -> TIFF files."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, TiffTags
from PIL.TiffImagePlugin import STRIPOFFSETS, AppendingTiffWriter, ImageFileDirectory_v2

from unet.runtime.files import atomic_path

_LARGEST_TIFF = 4_000_000_000  # bytes of pixels; a file ends at 4 GiB


@contextmanager
def stack_writer(path: Path, num_bytes: int) -> Iterator[Callable[[Image.Image, str | None], None]]:
    """Provide a function that adds a page, and a text of it, to a TIFF.

    An unfinished file does not stay. The TIFF is deflated, or a BigTIFF, which Pillow does not
    compress, if `num_bytes`, the pixels of all pages, are more than 4 GB. The text becomes the
    page's tag ImageDescription.

    Raises:
        ValueError: if there were more bytes than `num_bytes`, and the file is full.
    """
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate"}
    if num_bytes > _LARGEST_TIFF:
        # Pillow moves each page to its place. It has room for that place's 64 bits only if the
        # tag has this type from the start.
        tags = ImageFileDirectory_v2()
        tags.tagtype[STRIPOFFSETS] = TiffTags.LONG8
        tags[STRIPOFFSETS] = 0
        options = {"big_tiff": True, "tiffinfo": tags}
    with (
        atomic_path(path, flush=False) as temporary,
        temporary.open("w+b") as stream,
        AppendingTiffWriter(stream) as file,
    ):

        def add(page: Image.Image, text: str | None = None) -> None:
            described = {} if text is None else {"description": text}
            try:
                page.save(file, format="TIFF", **options, **described)
                file.newFrame()
            except struct.error as error:  # the place of the page does not fit into 32 bits
                raise ValueError(
                    f"{path}: got more than 4 GiB, expected pages of the size of the first; save "
                    "pages of other sizes as separate files"
                ) from error

        yield add
