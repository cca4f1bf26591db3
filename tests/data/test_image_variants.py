"""TIFFs drawn at random from the grid of what tifffile, GDAL and Pillow write.

UNET_VARIANTS=20000 tries more of them; `pytest -s` prints how many had which result.
"""

import io
import os
import re
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from PIL import Image, ImageOps
from rasterio.errors import NotGeoreferencedWarning

from unet.data.image_file import open_image
from unet.data.image_io import read_header, read_image
from unet.data.image_types import ReadOptions, Window
from unet.data.pillow_decoder import open_pillow
from unet.data.tiff_tags import is_plain, read_tags
from unet.inference.geotiff import Block, Span, open_raster

HEIGHT, WIDTH = 37, 53
COUNT = int(os.environ.get("UNET_VARIANTS", "200"))
LOSSY = {"jpeg", "webp", "jpeg2000", "lerc"}


class NotWrittenError(Exception):
    """The library does not write this variant."""


def pick(rng: np.random.Generator, usual: Any, *others: Any) -> Any:
    """The usual value half of the time."""
    return usual if rng.integers(2) else others[rng.integers(len(others))]


def draw(rng: np.random.Generator, dtype: str, bits: int, bands: int) -> np.ndarray:
    """Values (H, W, bands) of the whole range of a dtype."""
    shape = HEIGHT, WIDTH, bands
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.random(shape) < 0.5
    if kind == "f":
        return (rng.normal(0, 1000, shape)).astype(dtype)
    if kind == "u":
        return rng.integers(0, 2**bits, shape, dtype=np.uint64).astype(dtype)
    return rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(dtype)


TYPES = [
    *(("uint8", 8), ("bool", 1), ("uint8", 1), ("uint8", 2), ("uint8", 4), ("uint16", 12)),
    *(("uint16", 16), ("uint32", 32), ("int8", 8), ("int16", 16), ("int32", 32)),
    *(("float16", 16), ("float32", 32), ("float64", 64)),
]


def write_by_tifffile(path: Path, rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    dtype, bits = pick(rng, *TYPES)
    bands = pick(rng, 1, 2, 3, 3, 4, 5, 13)
    usual = "rgb" if bands in (3, 4) else "minisblack"
    compression = pick(rng, None, *COMPRESSIONS, "jpeg2000", "png", "jpegxl")
    planar = pick(rng, "contig", "separate") if bands > 1 else None
    options: dict[str, Any] = {
        "photometric": (photometric := pick(rng, usual, "minisblack", "miniswhite", "palette")),
        "compression": compression,
        "predictor": pick(rng, None, 2, 3) if compression in DEFLATED else None,
        "byteorder": pick(rng, "<", ">"),
        "bigtiff": pick(rng, False, True),
        "planarconfig": planar,
        "metadata": pick(rng, None, {}),
        **pick(rng, {}, {"rowsperstrip": 8}, {"tile": (16, 32)}),
    }
    if dtype == "bool" and bands > 1:
        raise NotWrittenError("values that GDAL reads differently")
    if 1 < bits < 8 or bits == 12:
        options["bitspersample"] = bits
    spare = bands - (3 if photometric == "rgb" else 1)
    if spare > 0:
        options["extrasamples"] = [pick(rng, "unassalpha", "unspecified")]
        options["extrasamples"] += ["unspecified"] * (spare - 1)
    if photometric == "palette":
        colours = 2 ** min(bits, 16)
        options["colormap"] = rng.integers(0, 65536, (3, colours)).astype(np.uint16)
    pixels = draw(rng, dtype, bits, bands)
    values = pixels[:, :, 0] if bands == 1 else pixels
    if planar == "separate":
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tifffile.imwrite(path, values, **options)
    except Exception as error:  # of any class: tifffile's and the codecs' own
        raise NotWrittenError(error) from None
    options.pop("colormap", None)
    return {"dtype": dtype, "bits": bits, "bands": bands, **options}, pixels


COMPRESSIONS = ("lzw", "deflate", "packbits", "zstd", "lzma", "jpeg", "webp", "lerc")
DEFLATED = {"lzw", "deflate", "zstd", "lzma", "tiff_lzw", "tiff_adobe_deflate"}


def write_by_gdal(path: Path, rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    dtype, bits = pick(rng, *(one for one in TYPES if one[0] not in {"bool", "float16"}))
    bands = pick(rng, 1, 2, 3, 3, 4, 5, 13)
    usual = "rgb" if bands in (3, 4) else "minisblack"
    photometric = pick(rng, usual, "minisblack", "miniswhite", "palette", "ycbcr", "none")
    compression = pick(rng, "none", *COMPRESSIONS)
    options: dict[str, Any] = {
        "compress": compression,
        "predictor": pick(rng, "1", "2", "3") if compression in DEFLATED else "1",
        "endianness": pick(rng, "little", "big"),
        "bigtiff": pick(rng, "no", "yes"),
        "interleave": pick(rng, "pixel", "band"),
        **pick(rng, {}, {"tiled": True, "blockxsize": 32, "blockysize": 16}),
    }
    if photometric not in {"none", "palette"}:
        options["photometric"] = photometric
    if bits < 8 or bits == 12:
        options["nbits"] = bits
    if bands in (2, 4) and rng.integers(2):
        options["alpha"] = pick(rng, "yes", "no", "premultiplied")
    pixels = draw(rng, dtype, bits, bands)
    try:
        with (
            warnings.catch_warnings(),
            rasterio.open(
                path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=bands, dtype=dtype,
                transform=Affine(1, 0, 5, 0, -1, 7), **options,
            ) as file,
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            file.write(pixels.transpose(2, 0, 1))
            if photometric == "palette" and bands == 1 and dtype == "uint8":
                colours = rng.integers(0, 256, (2**bits, 3)).tolist()
                file.write_colormap(1, {i: (*one, 255) for i, one in enumerate(colours)})
        with rasterio.open(path) as file:
            if not file.read().any():  # GDAL reports no error of a codec
                raise NotWrittenError("zeros")
    except Exception as error:  # of any class
        raise NotWrittenError(error) from None
    return {"dtype": dtype, "bits": bits, "bands": bands, **options}, pixels


MODES = {"1": 1, "L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "I;16": 1, "I": 1, "F": 1, "CMYK": 4}


def write_by_pillow(path: Path, rng: np.random.Generator) -> tuple[dict[str, Any], np.ndarray]:
    mode = list(MODES)[rng.integers(len(MODES))]
    compression = pick(
        rng,
        *("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate", "jpeg"),
        *("group3", "group4", "tiff_ccitt", "zstd", "lzma", "webp"),
    )
    dtype, bits = {"1": ("bool", 1), "I;16": ("uint16", 16), "I": ("int32", 32)}.get(
        mode, ("float32", 32) if mode == "F" else ("uint8", 8)
    )
    pixels = draw(rng, dtype, bits, MODES[mode])
    values = pixels[:, :, 0] if MODES[mode] == 1 else pixels
    image = Image.fromarray(values) if mode != "CMYK" else Image.fromarray(values, "RGBA")
    if mode == "CMYK":
        image = Image.frombytes("CMYK", image.size, values.tobytes())
    elif mode == "P":
        image = Image.fromarray(values)
        image.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tobytes())
    tags = {317: 2} if rng.integers(2) and compression in DEFLATED else {}
    if rng.integers(2):
        tags[278] = 8
    if rng.integers(4) == 0 and compression not in {"raw", "jpeg", "webp"}:
        tags[266] = 2  # the fill order, which libtiff writes
    try:
        image.save(path, compression=compression, tiffinfo=tags, big_tiff=bool(rng.integers(2)))
        Image.open(path).load()
    except Exception as error:  # of any class
        raise NotWrittenError(error) from None
    return {"mode": mode, "compress": compression, "bands": len(mode), **tags}, pixels


WRITERS: Sequence[Callable[[Path, np.random.Generator], tuple[dict[str, Any], np.ndarray]]] = (
    write_by_tifffile,
    write_by_gdal,
    write_by_pillow,
)


def read_by_tifffile(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        values, axes = series.asarray(), series.axes
    if len(axes) == 2:
        return values[..., None]
    return values.transpose(
        [axes.index(axis) for axis in ("Y", "X")]
        + [i for i, axis in enumerate(axes) if axis not in "YX"]
    )


def read_by_gdal(path: Path) -> np.ndarray | None:
    """Values (H, W, bands); None for what GDAL does not read or converts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                if "cmyk" in str(file.photometric).lower():
                    return None
                return np.asarray(file.read().transpose(1, 2, 0))
    except rasterio.errors.RasterioError:
        return None


def compare(
    path: Path, variant: dict[str, Any], drawn: np.ndarray, rng: np.random.Generator
) -> str:
    """Compare all ways to read a file; return what came of it in words."""
    windowed = ReadOptions(windows=True)
    try:
        with open_image(path) as file:
            pixels, header = file.read(), file.header
        with open_image(path, windowed) as file:
            whole, tiff_palette = file.read(), file.header.palette
            assert np.array_equal(whole.values, pixels.values, equal_nan=True)
            assert whole.values.dtype == pixels.values.dtype
            for _ in range(3):
                top, left = rng.integers(HEIGHT), rng.integers(WIDTH)
                bottom, right = rng.integers(top, HEIGHT) + 1, rng.integers(left, WIDTH) + 1
                part = file.read(window=Window(*map(int, (top, bottom, left, right)))).values
                assert np.array_equal(part, pixels.values[top:bottom, left:right], equal_nan=True)
    except ValueError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        return re.sub(r"\d+", "N", str(error).removeprefix(f"{path}: "))
    assert header.size == (HEIGHT, WIDTH)
    known = read_by_tifffile(path)
    assert np.array_equal(pixels.values, known, equal_nan=True), "tifffile"
    assert pixels.values.dtype == known.dtype
    words = str(variant).lower()
    # tifffile writes other values than it is given, but GDAL agrees with what it reads.
    packed = "bitspersample" in variant and variant["bits"] == 12
    if not packed and not any(one in words for one in LOSSY):
        assert np.array_equal(pixels.values, drawn, equal_nan=True), "drawn"
    gdal = read_by_gdal(path)
    result = "equal"
    if gdal is not None and not any(one in words for one in LOSSY):
        assert np.array_equal(gdal, pixels.values, equal_nan=True), "GDAL"
        result = "equal, also GDAL's reading"
    if is_plain(path, read_tags(path)):
        with io.FileIO(path) as raw, open_pillow(path, raw) as plain:
            assert np.array_equal(plain.read(0, None).values, known, equal_nan=True), "Pillow"
            assert plain.header.palette is None or np.array_equal(
                plain.header.palette, tiff_palette
            )
        result += ", and Pillow's"
    # training = prediction
    bands = 3 if header.palette is not None else header.bands
    image = read_image(path, bands)
    with open_raster(path, bands, ReadOptions()) as raster:
        block = raster.read(Block(Span(0, HEIGHT), Span(0, WIDTH)))
    assert np.array_equal(image, block, equal_nan=True), "training"
    return result


def test_variants(tmp_path: Path) -> None:
    """Whole = windows = training = prediction = tifffile, GDAL and Pillow, or an error in words."""
    results: Counter[tuple[str, str]] = Counter()
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        writer = WRITERS[rng.integers(3)]
        path = tmp_path / f"{number}.tif"
        try:
            variant, drawn = writer(path, rng)
        except NotWrittenError:
            continue
        try:
            results[writer.__name__, compare(path, variant, drawn, rng)] += 1
        except Exception as error:
            error.add_note(f"{number}: {variant}")
            raise
        path.unlink()
    for (name, result), number in sorted(results.items()):
        print(f"| {name} | {number} | {result} |")
    assert sum(results.values()) > COUNT / 3
    refused = sum(number for (_, result), number in results.items() if "equal" not in result)
    assert refused <= 0.03 * sum(results.values())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
@pytest.mark.parametrize("write", ["tifffile", "Pillow"])
def test_an_orientation_turns_the_image(
    tmp_path: Path, orientation: int, compression: str | None, write: str
) -> None:
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)
    if write == "Pillow":
        name = {None: "raw", "lzw": "tiff_lzw", "jpeg": "jpeg"}[compression]
        Image.fromarray(values).save(path, compression=name, tiffinfo={274: orientation})
    else:
        tags = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(path, values, compression=compression, extratags=tags)
    stored = tifffile.imread(path)
    with Image.open(path) as image:
        known = Image.fromarray(stored)
        known.getexif()[274] = orientation
        assert image.tag_v2[274] == orientation
    upright = np.asarray(ImageOps.exif_transpose(known))
    for windows in (False, True):
        assert np.array_equal(read_image(path, 1, options=ReadOptions(windows=windows))[0], upright)
    options = ReadOptions(exif="ignore", windows=True)
    assert np.array_equal(read_image(path, 1, options=options)[0], stored)
    window = Window(3, 9, 2, 17)
    with open_image(path, options) as file:
        assert np.array_equal(file.read(window=window).values[:, :, 0], stored[3:9, 2:17])
    with open_image(path, ReadOptions(windows=True)) as file:
        if orientation > 1:
            with pytest.raises(ValueError, match=r"EXIF orientation, .* turn windows off"):
                file.read(window=window)


def test_the_fill_order_of_uncompressed_bits(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tif", np.random.default_rng(0).random((24, 20)) < 0.5
    Image.fromarray(values).save(path, tiffinfo={266: 2})  # Pillow does not turn the bits
    with tifffile.TiffFile(path) as file:
        start, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    contents = np.fromfile(path, np.uint8)
    packed = contents[start : start + size]
    packed[:] = np.packbits(np.unpackbits(packed), bitorder="little")
    contents.tofile(path)
    gdal = read_by_gdal(path)
    assert gdal is not None
    for known in (read_by_tifffile(path), gdal):
        assert np.array_equal(known[:, :, 0] > 0, values)
    for windows in (False, True):
        image = read_image(path, 1, options=ReadOptions(windows=windows))[0]
        assert np.array_equal(image, 255 * values)


def test_a_stack_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    pages = np.arange(20 * 9 * 7, dtype=np.uint16).reshape(20, 9, 7)
    tifffile.imwrite(path, pages, metadata=None, photometric="minisblack")
    opened = []
    first = tifffile.TiffFile
    monkeypatch.setattr(
        tifffile, "TiffFile", lambda *args, **kw: (opened.append(1), first(*args, **kw))[1]
    )
    for i in range(20):
        assert np.array_equal(read_image(path, 1, i)[0], pages[i])
    assert read_header(path).pages == 20
    assert len(opened) == 1
    # Another file of the same name.
    tifffile.imwrite(path, pages[:3] + 1, metadata=None, photometric="minisblack")
    assert read_header(path).pages == 3
    assert np.array_equal(read_image(path, 1, 2)[0], pages[2] + 1)


def test_the_colours_of_a_palette_are_those_of_the_file(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(63, dtype=np.uint8).reshape(9, 7))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(tmp_path / "a.tif")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.tif", 3), expected)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_palettes_with_colours_of_8_bits(tmp_path: Path, compression: str | None) -> None:
    rng = np.random.default_rng(0)
    values, colours = rng.integers(0, 256, (9, 7), np.uint8), rng.integers(0, 256, (3, 256))
    settings = {"photometric": "palette", "colormap": colours.astype(np.uint16)}
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, **settings)
    assert np.array_equal(read_image(tmp_path / "a.tif", 3), colours[:, values])


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_pillow_does_not_decode_what_it_reads_wrong(tmp_path: Path, dtype: str) -> None:
    values = np.arange(63, dtype=dtype).reshape(9, 7)
    settings = {"photometric": "miniswhite"} if dtype == "uint16" else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=">", compression="deflate", **settings)
    assert np.array_equal(read_image(tmp_path / "a.tif", 1)[0], values)


def test_the_memory_to_read_a_file_is_bounded_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    Image.new("RGB", (8, 9)).save(path)
    contents = bytearray(path.read_bytes())
    at = contents.index(b"jp2h") - 4
    contents[at : at + 4] = b"\xf5\0\0\0"  # the length of a box: 4.1 GB
    path.write_bytes(contents)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"a\.jp2: cannot be read as an image"):
        read_image(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 1e8
    tracemalloc.stop()
