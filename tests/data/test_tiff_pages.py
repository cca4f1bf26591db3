"""Pages of TIFFs that are images, and those that are not; missing pixels as GDAL declares them."""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import yaml
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning

from unet.data.image_file import open_image
from unet.data.image_io import read_header, read_image, read_stored
from unet.data.image_types import ReadOptions, Window

RNG = np.random.default_rng(0)
LARGE = RNG.integers(0, 255, (96, 80), dtype=np.uint8)
STACK = RNG.integers(0, 255, (3, 2, 4, 24, 20), dtype=np.uint8)  # TZCYX
WINDOW = Window(3, 17, 5, 19)


def write_pages(path: Path, *pages: dict[str, Any]) -> None:
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(metadata=None, **page)


def test_pages_of_reduced_resolution_and_thumbnails_are_no_images(tmp_path: Path) -> None:
    half, quarter = LARGE[::2, ::2], LARGE[::4, ::4]
    slide = {"tile": (32, 32), "description": "Aperio Image Library v1"}
    files: dict[str, list[dict[str, Any]]] = {
        "tagged": [{"data": LARGE}, {"data": half, "subfiletype": 1}],
        "untagged halves": [{"data": LARGE}, {"data": half}, {"data": quarter}],
        "thumbnail": [{"data": LARGE}, {"data": LARGE[::6, ::6]}],
        "thumbnail first": [{"data": half, "subfiletype": 1}, {"data": LARGE}],
        "slide": [{"data": LARGE, **slide}, {"data": LARGE[:30, :70]}, {"data": half, **slide}],
    }
    for name, pages in files.items():
        path = tmp_path / f"{name}.tif"
        write_pages(path, *pages)
        assert read_header(path).pages == 1, name
        assert np.array_equal(read_image(path, 1)[0], LARGE), name
    with tifffile.TiffWriter(tmp_path / "inner.tif") as file:
        file.write(LARGE, subifds=1, tile=(32, 32))
        file.write(half, subfiletype=1, tile=(32, 32))
    assert np.array_equal(read_image(tmp_path / "inner.tif", 1)[0], LARGE)


def test_pages_of_different_sizes_are_an_error(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", {"data": LARGE}, {"data": LARGE[:50, :70]})
    with pytest.raises(ValueError, match=r"a\.tif: got pages of 96 x 80 pixels \(YX, .*of 50 x 70"):
        read_image(tmp_path / "a.tif", 1)


def test_pages_of_different_types_are_an_error(tmp_path: Path) -> None:
    write_pages(tmp_path / "a.tif", {"data": LARGE}, {"data": LARGE.astype(np.uint16)})
    with pytest.raises(
        ValueError, match=r"\(YX, uint8\) and of 96 x 80 pixels \(YX, uint16\), exp"
    ):
        read_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize("ending", ["ome.tif", "qptiff"])
def test_pictures_of_the_slide_are_no_images(tmp_path: Path, ending: str) -> None:
    path, maker = tmp_path / f"a.{ending}", {"qptiff": {"software": "PerkinElmer-QPI"}}
    with tifffile.TiffWriter(path, ome=ending == "ome.tif") as file:
        for size, name in ((96, "slide"), (20, "label image"), (30, "macro image")):
            metadata = {"Name": name} if ending == "ome.tif" else None
            file.write(LARGE[:size, :70], metadata=metadata, tile=(32, 32), **maker.get(ending, {}))
            if name == "slide" and ending == "qptiff":
                file.write(LARGE[:9, :9], metadata=None, **maker["qptiff"])
                file.write(LARGE[:48, :35], metadata=None, tile=(32, 32), **maker["qptiff"])
    assert read_header(path).pages == 1
    assert np.array_equal(read_image(path, 1)[0], LARGE[:, :70])


Tags = dict[int, tuple[int, int, bytes]]


def write_directories(path: Path, *directories: tuple[Tags, Sequence[bytes]]) -> None:
    """Write a TIFF of directories of tags (type, number of values, values) and strips."""
    contents, link = bytearray(b"II*\0\0\0\0\0"), 4

    def append(value: bytes) -> bytes:
        contents.extend(value)
        return struct.pack("<I", len(contents) - len(value))

    for tags, strips in directories:
        starts = b"".join([append(strip) for strip in strips])
        records = b""
        for code, (kind, number, value) in sorted({**tags, 273: (4, len(strips), starts)}.items()):
            is_far = len(value) > 4 or (code, number) == (258, 2)  # which Zeiss writes
            records += struct.pack("<HHI", code, kind, number)
            records += append(value) if is_far else value.ljust(4, b"\0")
        contents[link : link + 4] = struct.pack("<I", len(contents))
        contents += struct.pack("<H", len(tags) + 1) + records
        link = len(contents)
        contents += bytes(4)
    path.write_bytes(contents)


def list_tags(planes: np.ndarray, subfile: int = 0) -> Tags:
    """The tags of planes (C, H, W), each a strip."""
    channels, height, width = planes.shape
    tags = {
        254: subfile,
        256: width,
        257: height,
        259: 1,
        262: 1,
        277: channels,
        278: height,
        284: 2,
    }
    return {code: (4, 1, struct.pack("<I", value)) for code, value in tags.items()} | {
        258: (3, channels, np.full(channels, 8 * planes.itemsize, "<u2").tobytes()),
        279: (4, channels, np.full(channels, planes[0].nbytes, "<u4").tobytes()),
    }


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("slices", [1, 3])
def test_lsm_files_hold_slices_and_thumbnails(tmp_path: Path, slices: int, channels: int) -> None:
    path, stack, thumbnail = (
        tmp_path / "a.lsm",
        STACK[0, 0, :channels],
        np.zeros((1, 6, 5), np.uint8),
    )
    info = bytearray(512)
    struct.pack_into("<I7i", info, 0, 67127628, 512, 20, 24, slices, channels, 1, 1)
    pages = [stack + np.uint8(z) for z in range(slices)]
    directories = []
    for page in pages:
        directories.append((list_tags(page), [plane.tobytes() for plane in page]))
        directories.append((list_tags(thumbnail, 1), [thumbnail.tobytes()]))
    directories[0][0][34412] = (1, 512, bytes(info))
    write_directories(path, *directories)
    assert (read_header(path).pages, read_header(path).bands) == (slices, channels)
    for z, page in enumerate(pages):
        assert np.array_equal(read_image(path, channels, z), page)
        with open_image(path) as file:
            assert np.array_equal(file.read(z, WINDOW).values, page.transpose(1, 2, 0)[3:17, 5:19])


def test_lsm_files_without_thumbnails_are_an_error(tmp_path: Path) -> None:
    info, pages = bytearray(512), list(STACK[0, 0, :2, None])
    struct.pack_into("<I7i", info, 0, 67127628, 512, 20, 24, 2, 1, 1, 1)
    for count in (1, 2):
        directories = [(list_tags(page), [page[0].tobytes()]) for page in pages[:count]]
        directories[0][0][34412] = (1, 512, bytes(info))
        for tags, _ in directories:
            tags[254] = (4, 1, struct.pack("<I", 0))
        write_directories(tmp_path / "a.lsm", *directories)
        with pytest.raises(
            ValueError, match=r"a\.lsm: got an LSM file without thumbnails, expected"
        ):
            read_header(tmp_path / "a.lsm")


def test_a_file_of_an_ome_image_of_several_files_is_an_error_unless_axes_are_given(
    tmp_path: Path,
) -> None:
    planes = "".join(
        f'<TiffData IFD="0" FirstC="{i}"><UUID FileName="{i}.ome.tif">urn:uuid:{i}</UUID>'
        "</TiffData>"
        for i in range(2)
    )
    pixels = '<Pixels ID="P:0" DimensionOrder="XYCZT" Type="uint8" SizeX="80" SizeY="96"'
    head = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
    whole = f'{pixels} SizeC="2" SizeZ="1" SizeT="1">{planes}</Pixels></Image></OME>'
    texts = [f'{head} UUID="urn:uuid:{i}"><Image ID="Image:0">{whole}' for i in range(2)]
    texts.append(f'{head}><BinaryOnly MetadataFile="0.ome.tif" UUID="urn:uuid:0"/></OME>')
    for i, text in enumerate(texts):
        path = tmp_path / f"{i}.ome.tif"
        tifffile.imwrite(path, LARGE + np.uint8(i), description=text, metadata=None)
        for windows in (False, True):
            with pytest.raises(ValueError, match=r"of several files, with the axes YX \(96 x 80\)"):
                read_stored(path, options=ReadOptions(windows=windows))
            own = read_stored(path, options=ReadOptions(windows=windows, axes="YX"))[1].values
            assert np.array_equal(own[..., 0], LARGE + np.uint8(i))


@pytest.mark.parametrize("kind", [2, 128])  # square roots, multiples
def test_values_that_are_to_be_scaled_are_an_error(tmp_path: Path, kind: int) -> None:
    tags = [(33445, "I", 1, kind, True), (33446, "2I", 1, (1, 500), True)]
    tifffile.imwrite(tmp_path / "a.tif", LARGE.astype(np.uint16), metadata=None, extratags=tags)
    for windows in (False, True):
        with pytest.raises(ValueError, match=r"a\.tif: got an MD Gel file, whose values are to be"):
            read_stored(tmp_path / "a.tif", options=ReadOptions(windows=windows))


def test_metamorph_stacks_have_one_directory(tmp_path: Path) -> None:
    path, planes = tmp_path / "a.stk", STACK[0, 0, :3]
    dates = b"".join(struct.pack("<6I", z + 1, 1, 2450000, z, 0, 0) for z in range(3))
    times = np.array([500, 1] * 3, "<u4").tobytes()
    tags = {**list_tags(planes[:1]), 33628: (5, 3, times), 33629: (5, 3, dates)}
    write_directories(path, (tags, [planes.tobytes()]))
    assert (read_header(path).pages, read_header(path).axes) == (3, "ZYX")
    for z in range(3):
        assert np.array_equal(read_image(path, 1, z)[0], planes[z])


@pytest.mark.parametrize("axes", ["TZCYX", "TCZYX", "CTZYX", "ZTCYX"])
def test_axes_that_a_file_names_are_pages_or_channels(tmp_path: Path, axes: str) -> None:
    path = tmp_path / "a.ome.tif"
    data = STACK.transpose(["TZCYX".index(axis) for axis in axes])
    tifffile.imwrite(path, data, metadata={"axes": axes}, photometric="minisblack")
    header = read_header(path)
    assert (header.pages, header.bands) == (6, 4)
    pages = data.transpose([axes.index(axis) for axis in axes if axis not in "CYX"] + [
        axes.index(axis) for axis in "CYX"
    ]).reshape(6, 4, 24, 20)  # fmt: skip
    for i in range(6):
        assert np.array_equal(read_image(path, 4, i), pages[i])
        with open_image(path) as file:
            part = file.read(i, WINDOW).values
        assert np.array_equal(part, pages[i].transpose(1, 2, 0)[3:17, 5:19])


def test_hyperstacks_of_imagej_are_read_by_their_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "TZCYX"})
    header = read_header(path)
    assert (header.axes, header.pages, header.bands) == ("TZCYX", 6, 4)
    assert np.array_equal(read_image(path, 4, 3), STACK[1, 1])


def test_axes_that_cannot_be_told_are_decided_by_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    data = STACK[0, 0]
    tifffile.imwrite(path, data, photometric="minisblack")
    with pytest.raises(ValueError, match=r"got 4 pages \(axes QYX\), expected one image; set"):
        read_image(path, 4)
    assert np.array_equal(read_image(path, 4, options=ReadOptions(axes="CYX")), data)
    assert np.array_equal(read_image(path, 1, 2)[0], data[2])
    with pytest.raises(ValueError, match=r"got the axes QYX \(4 x 24 x 20\), expected as many"):
        read_image(path, 4, options=ReadOptions(axes="TCYX"))


def test_height_and_width_cannot_be_renamed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, 0], photometric="minisblack", compression="zlib")
    for axes in ("YXC", "CXY", "CC", "ZYC"):
        with pytest.raises(ValueError, match=r"got the axes QYX .*Y and X in the same places"):
            read_image(tmp_path / "a.tif", 4, options=ReadOptions(axes=axes))


def test_arrays_of_numpy_are_read_by_their_smallest_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, channels in ((LARGE, 1), (STACK[0, 0], 4), (STACK[0, 0].transpose(1, 2, 0), 4)):
        np.save(path, array)
        expected = array if channels == 1 else STACK[0, 0]
        assert np.array_equal(read_image(path, channels).squeeze(), expected)
    np.save(path, STACK)
    with pytest.raises(ValueError, match=r"a\.npy: got 3 x 2 x 4 x 24 x 20 values, .* data\.axes"):
        read_image(path, 4)
    assert np.array_equal(read_image(path, 4, 3, ReadOptions(axes="TZCYX")), STACK[1, 1])


def write_raster(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **profile: Any):
    bands = values[None] if values.ndim == 2 else values
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **size, **profile) as file:
            file.write(bands)
            if mask is not None:
                file.write_mask(mask)


def valid_of_gdal(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return np.asarray(file.dataset_mask() > 0)


def check_valid(path: Path) -> np.ndarray:
    """Whole, in windows, and as GDAL says."""
    header, (_, valid) = read_stored(path)
    expected = valid_of_gdal(path)
    whole = np.ones(header.size, bool) if valid is None else valid.any(2)
    assert np.array_equal(whole, expected)
    with open_image(path, ReadOptions(windows=True)) as file:
        part = file.read(window=WINDOW).valid
    inside = expected[3:17, 5:19]
    assert inside.all() if part is None else np.array_equal(part.any(2), inside)
    return whole


@pytest.mark.parametrize("compress", ["none", "deflate"])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", 0), ("uint8", 255), ("uint16", 65535), ("int16", -9999), ("int16", -32768),
        ("int32", -(2**31)), ("float32", -9999), ("float32", np.nan), ("float32", -3.4028235e38),
        ("float64", -1.7976931348623157e308), ("float64", -9999.5),
    ],
)  # fmt: skip
def test_declared_nodata_is_missing(
    tmp_path: Path, dtype: str, nodata: float, compress: str
) -> None:
    values = RNG.integers(1, 250, (24, 20)).astype(dtype)
    values[5:9, 6:12] = nodata
    write_raster(tmp_path / "a.tif", values, nodata=nodata, compress=compress)
    assert np.count_nonzero(~check_valid(tmp_path / "a.tif")) == 24
    image = read_image(tmp_path / "a.tif", 1)[0]
    assert np.array_equal(np.isnan(image), ~valid_of_gdal(tmp_path / "a.tif"))


def test_nodata_that_the_dtype_cannot_hold_is_nowhere(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", LARGE, extratags=[(42113, 2, 0, "-9999", True)])
    assert read_image(tmp_path / "a.tif", 1).dtype == np.uint8


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("inner", [True, False])
def test_masks_inside_and_beside_a_tiff_say_which_pixels_are_valid(
    tmp_path: Path, inner: bool, interleave: str
) -> None:
    mask = np.full((24, 20), 255, np.uint8)
    mask[2:6, 4:11] = 0
    path = tmp_path / "a.tif"
    values = RNG.integers(0, 255, (3, 24, 20), dtype=np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inner):
        write_raster(
            path, values, mask, photometric="rgb", compress="deflate", interleave=interleave
        )
    assert path.with_name("a.tif.msk").exists() != inner
    assert np.array_equal(check_valid(path), mask > 0)
    image = read_image(path, 3)
    assert np.array_equal(np.isnan(image).all(0), mask == 0)


def test_overviews_with_masks_are_no_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    mask = np.full(LARGE.shape, 255, np.uint8)
    mask[:10] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
        write_raster(path, LARGE, mask, compress="deflate", **tiles)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "r+") as file:
                file.build_overviews([2, 4], Resampling.average)
    assert read_header(path).pages == 1
    assert np.array_equal(check_valid(path), mask > 0)


def test_tiles_that_gdal_left_out_are_nodata_or_an_error(tmp_path: Path) -> None:
    values = np.zeros((64, 64), np.uint8)
    values[:16, :16] = 7
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16, "SPARSE_OK": True}
    write_raster(tmp_path / "a.tif", values, nodata=0, **options)
    assert np.count_nonzero(check_valid(tmp_path / "a.tif")) == 16 * 16
    write_raster(tmp_path / "b.tif", values, **options)
    with pytest.raises(
        ValueError, match="1 complete strips or tiles at most, and its 64 x 64 pixels need 16"
    ):
        read_image(tmp_path / "b.tif", 1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_is_a_mask_or_a_channel(tmp_path: Path, dtype: str) -> None:
    values = RNG.integers(1, 255, (4, 24, 20)).astype(dtype)
    values[3] = np.iinfo(dtype).max
    values[3, 4:9, 5:8] = 0
    write_raster(tmp_path / "a.tif", values, photometric="rgb", alpha="yes")
    image = read_image(tmp_path / "a.tif", 3)
    assert np.array_equal(np.isnan(image).all(0), values[3] == 0)
    assert np.array_equal(read_image(tmp_path / "a.tif", 4), values)


def test_alpha_is_a_mask_whatever_the_number_of_bands(tmp_path: Path) -> None:
    values = RNG.integers(1, 255, (24, 20, 6), dtype=np.uint8)
    values[..., 5] = 255
    values[4:9, 5:8, 5] = 0
    extra = ["unspecified"] * 4 + ["unassalpha"]
    settings = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": extra}
    tifffile.imwrite(tmp_path / "a.tif", values, **settings)
    image = read_image(tmp_path / "a.tif", 5)
    assert np.array_equal(np.isnan(image).all(0), values[..., 5] == 0)
    assert np.array_equal(read_image(tmp_path / "a.tif", 6), values.transpose(2, 0, 1))


def test_the_advised_nodata_is_that_of_the_file(tmp_path: Path) -> None:
    values, value = np.full((24, 20), 0.5), -1.7976931348623157e308
    values[3:5] = value
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(ValueError, match=r"data\.nodata=(\S+)$") as caught:
        read_image(tmp_path / "a.tif", 1)
    advised = yaml.safe_load(str(caught.value).rpartition("=")[2])
    image = read_image(tmp_path / "a.tif", 1, options=ReadOptions(nodata=advised))
    assert np.array_equal(np.isnan(image[0]), values == value)


def test_infinity_is_no_nodata(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 5), np.inf, np.float32))
    with pytest.raises(
        ValueError, match=r"got 20 values of infinity or beyond .*; correct the image"
    ):
        read_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize("compress", ["lerc", "lerc_deflate", "lerc_zstd"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("bands", [1, 3])
def test_nan_in_the_mask_of_lerc(
    tmp_path: Path, compress: str, interleave: str, bands: int
) -> None:
    values = RNG.normal(size=(bands, 24, 20)).astype(np.float32)
    values[-1, 3:9, 5:12] = np.nan
    options = {"compress": compress, "max_z_error": 0, "interleave": interleave}
    write_raster(tmp_path / "a.tif", values, **options)
    for windows in (False, True):
        options = ReadOptions(windows=windows)
        image = read_image(tmp_path / "a.tif", bands, options=options)
        assert np.array_equal(image, values, equal_nan=True)


def test_alpha_in_the_mask_of_lerc(tmp_path: Path) -> None:
    values = RNG.integers(1, 255, (4, 24, 20), dtype=np.uint8)
    values[3] = 255
    values[3, 4:9, 5:8] = 0
    values[:3, 4:9, 5:8] = 0  # where LERC stores no values
    options = {"compress": "lerc", "max_z_error": 0, "photometric": "rgb", "alpha": "yes"}
    write_raster(tmp_path / "a.tif", values, **options)
    assert np.array_equal(read_image(tmp_path / "a.tif", 4), values)
