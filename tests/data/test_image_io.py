import errno
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from helpers import write_png16
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from unet.data.image_io import read_header, read_image, read_stored, to_channels, to_float
from unet.data.image_types import ReadOptions, UnreadableError
from unet.data.pillow_decoder import PillowDecoder

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (9, 13), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (9, 13), dtype=np.uint16)
COLOUR16 = RNG.integers(0, 65536, (9, 13, 3), dtype=np.uint16)


def write_tiff16(path: Path, pixels: np.ndarray, order: str, planes: bool = False) -> None:
    """Write 16-bit RGB, which Pillow cannot, interleaved or as three planes."""
    height, width = pixels.shape[:2]
    data = (pixels.transpose(2, 0, 1) if planes else pixels).astype(f"{order}u2").tobytes()
    lists_at = 8 + 2 + 9 * 12 + 4
    data_at = lists_at + 6 + 24
    if planes:
        strips = [data_at + i * len(data) // 3 for i in range(3)]
        strip_tags = [(273, 4, 3, lists_at + 6), (279, 4, 3, lists_at + 18)]
    else:
        strips = [data_at] * 3
        strip_tags = [(273, 4, 1, data_at), (279, 4, 1, len(data))]
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, lists_at), (259, 4, 1, 1),
        (262, 4, 1, 2), strip_tags[0], (277, 4, 1, 3), strip_tags[1],
        (284, 4, 1, 2 if planes else 1),
    ]  # fmt: skip
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    fields = b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags)
    lists = struct.pack(f"{order}I3H6I", 0, 16, 16, 16, *strips, *[len(data) // 3] * 3)
    path.write_bytes(header + fields + lists + data)


def read_scaled(path: Path, in_channels: int) -> np.ndarray:
    return to_float(read_image(path, in_channels))


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_grey_and_colour_are_read_exactly(tmp_path: Path, ending: str) -> None:
    for pixels, channels in ((GREY, 1), (COLOUR, 3)):
        path = tmp_path / f"{channels}.{ending}"
        Image.fromarray(pixels).save(path)
        image = read_scaled(path, channels)
        assert image.dtype == np.float32
        expected = pixels.reshape(9, 13, -1).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(image, expected, rtol=1e-6)


def test_jpeg_is_read(tmp_path: Path) -> None:
    smooth = np.tile(np.arange(16, dtype=np.uint8) * 8, (16, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    image = read_scaled(tmp_path / "a.jpg", 1)
    np.testing.assert_allclose(image[0], smooth / 255, atol=0.02)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_kept(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(GREY16).save(path)
    np.testing.assert_allclose(read_scaled(path, 1)[0], GREY16 / 65535, rtol=1e-6)


def test_16_bit_colour_png_is_kept_although_pillow_would_cut_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png16(path, COLOUR16)
    expected = COLOUR16.transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(read_scaled(path, 3), expected, rtol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_colour_tiff_is_kept(tmp_path: Path, order: str) -> None:
    write_tiff16(tmp_path / "a.tif", COLOUR16, order)
    expected = COLOUR16.transpose(2, 0, 1) / 65535
    np.testing.assert_allclose(read_scaled(tmp_path / "a.tif", 3), expected, rtol=1e-6)


def test_a_constant_alpha_channel_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((9, 13, 1), 200, np.uint8)
    Image.fromarray(np.concatenate([COLOUR, alpha], 2)).save(tmp_path / "a.png")
    Image.fromarray(np.concatenate([GREY[..., None], alpha], 2)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.png", 3).shape == (3, 9, 13)
    assert read_image(tmp_path / "b.png", 1).shape == (1, 9, 13)


def test_alpha_can_be_the_fourth_channel(tmp_path: Path) -> None:
    Image.fromarray(np.concatenate([COLOUR, GREY[..., None]], 2)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_scaled(tmp_path / "a.png", 4)[3], GREY / 255, rtol=1e-6)


def test_grey_with_alpha_of_16_bits_is_an_error(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", COLOUR16[:, :, :2])
    with pytest.raises(ValueError, match="grey with alpha of 16 bits, which Pillow changes"):
        read_image(tmp_path / "a.png", 1)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
def test_a_transparent_grey_value_of_a_png_is_missing(tmp_path: Path, dtype: str) -> None:
    values = np.arange(63).reshape(9, 7).astype(dtype)
    Image.fromarray(values).save(tmp_path / "a.png")
    contents = (tmp_path / "a.png").read_bytes()
    start = contents.index(b"IDAT") - 4
    chunk = b"tRNS" + struct.pack(">H", 1)
    chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(contents[:start] + chunk + contents[start:])
    image = read_image(tmp_path / "a.png", 1)[0]
    assert np.array_equal(np.isnan(image), values == 1)


@pytest.mark.parametrize("bits", [4, 8, 12, 15, 16])
def test_jpeg_2000_has_the_values_of_its_bits(tmp_path: Path, bits: int) -> None:
    dtype = np.uint8 if bits <= 8 else np.uint16
    values = np.random.default_rng(0).integers(0, 2**bits, (30, 20)).astype(dtype)
    settings = {"level": 0, "reversible": True, "bitspersample": bits}
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(values, **settings))
    header, pixels = read_stored(tmp_path / "a.jp2")
    assert header.bits == bits
    assert np.array_equal(pixels.values[:, :, 0], values)


def test_jpeg_2000_with_negative_values_is_an_error(tmp_path: Path) -> None:
    contents = imagecodecs.jpeg2k_encode(np.full((30, 20), -5, np.int16), level=0, reversible=True)
    (tmp_path / "a.jp2").write_bytes(contents)
    with pytest.raises(ValueError, match=r"a\.jp2: got JPEG 2000 of values with a sign, .* a TIFF"):
        read_image(tmp_path / "a.jp2", 1)


def test_a_file_of_another_format_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        read_image(tmp_path / "a.png", 1)


def test_lossless_conversions_are_made(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    three = read_image(tmp_path / "grey.png", 3)
    assert np.array_equal(three[0], three[2])
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "rgb.png")
    assert np.array_equal(read_image(tmp_path / "rgb.png", 1)[0], three[0])
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "palette.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(read_scaled(tmp_path / "palette.png", 3), expected, rtol=1e-6)


def test_colours_are_not_converted_to_grey(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: got an image of 3 channels, expected"):
        read_image(tmp_path / "a.png", 1)


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png", 1).shape == (1, 13, 9)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.png: there is no such file"):
        read_image(tmp_path / "a.png", 1)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
def test_truncated_files_are_unreadable(tmp_path: Path, ending: str, fraction: float) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"a\.{ending}: cannot be read as an image \(.+\)"):
        read_image(path, 1)


def test_a_truncated_16_bit_colour_png_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png16(path, COLOUR16)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        read_image(path, 3)


def test_a_text_file_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        read_image(tmp_path / "a.png", 1)


def test_several_pages_are_an_error(tmp_path: Path) -> None:
    page = Image.fromarray(GREY)
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(ValueError, match=r"a\.tif: got 3 pages \(axes IYX\), expected one image"):
        read_image(tmp_path / "a.tif", 1)


def test_floats_are_kept_as_they_are(tmp_path: Path) -> None:
    numbers = GREY.astype(np.float32) * 1000 - 7
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    assert np.array_equal(read_scaled(tmp_path / "a.tif", 1)[0], numbers)
    assert to_channels(np.zeros((4, 4)), 1, "image").dtype == np.float32
    with pytest.raises(ValueError, match=r"image: got an array of shape .* and dtype complex128"):
        to_channels(np.zeros((4, 4), complex), 1, "image")


def test_huge_values_are_read_and_can_be_declared_missing(tmp_path: Path) -> None:
    numbers = GREY.astype(np.float32)
    numbers[0, 0] = -3.4028235e38
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif", 1)[0], numbers)
    image = read_image(tmp_path / "a.tif", 1, options=ReadOptions(nodata=-3.4028235e38))
    assert np.isnan(image[0, 0, 0])
    assert np.array_equal(image[0].ravel()[1:], numbers.ravel()[1:])


def test_transparent_pixels_are_missing(tmp_path: Path) -> None:
    alpha = np.full((9, 13, 1), 255, np.uint8)
    alpha[2:4, 3:6] = 0
    Image.fromarray(np.concatenate([COLOUR, alpha], 2)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", 3)
    assert np.array_equal(np.isnan(image).all(0), alpha[..., 0] == 0)
    known = alpha[..., 0] > 0
    assert np.array_equal(image[:, known], to_float(COLOUR.transpose(2, 0, 1))[:, known])


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_its_exif_says(
    tmp_path: Path, compression: str | None, orientation: int
) -> None:
    image = Image.fromarray(GREY)
    image.save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.tif", 1), read_image(tmp_path / "a.png", 1))
    assert ("turned by EXIF" in read_header(tmp_path / "a.tif").describe()) == (orientation > 1)


def test_a_page_of_a_stack_is_read(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY // (i + 1)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / "a.tif").pages == 3
    for i in range(3):
        assert np.array_equal(read_image(tmp_path / "a.tif", 1, page=i)[0], GREY // (i + 1))
    Image.fromarray(GREY).save(tmp_path / "b.png")
    assert read_header(tmp_path / "b.png").pages == 1


def test_several_files_are_channels(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        Image.fromarray(GREY16 // (i + 1)).save(tmp_path / f"{name}.tif")
    paths = [str(tmp_path / f"{name}.tif") for name in "abc"]
    image = read_image(paths, 3)
    assert image.dtype == np.uint16
    assert np.array_equal(image, np.stack([GREY16, GREY16 // 2, GREY16 // 3]))
    with pytest.raises(ValueError, match=r"got 3 files as channels, expected .*in_channels, 2"):
        read_image(paths, 2)
    Image.fromarray(GREY[:4, :5]).save(paths[1])
    with pytest.raises(ValueError, match=r"b\.tif: got 4 x 5 pixels, expected 9 x 13"):
        read_image(paths, 3)


def test_a_gif_is_read_by_its_palettes_colours(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.gif")
    assert np.array_equal(read_image(tmp_path / "a.gif", 1)[0], GREY)


def test_the_content_of_a_file_decides_how_it_is_read(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 1)[0], GREY)


@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "bmp", "gif"])
def test_files_truncated_anywhere_are_unreadable(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(
            UnreadableError, match=rf"a\.{ending}: cannot be read as an image \(.+\)"
        ):
            read_image(path, 1)


def test_a_small_file_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\x00\x00\x00\x00IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    with pytest.raises(
        ValueError, match=r"got 2147483647 x 2147483647 pixels of .*raise data.max_pixels"
    ):
        read_image(tmp_path / "a.png", 1)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a folder, expected an image"):
        read_image(tmp_path, 1)


def test_a_png_with_a_changed_byte_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    pixels = np.arange(64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(pixels).save(path, compress_level=0)  # where zlib notices nothing
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)
    with pytest.raises(UnreadableError, match=r"1\.png: cannot be read as an image .*IDAT"):
        read_image(path, 1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        KeyboardInterrupt(),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_lack_of_resources_does_not_make_an_image_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.fromarray(GREY).save(tmp_path / "a.tif")
    monkeypatch.setattr(TiffImageFile, "load", fail)
    with pytest.raises(type(error)) as caught:
        read_image(tmp_path / "a.tif", 1)
    assert caught.value is error


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_pages_of_an_animation_are_read_in_any_order_in_linear_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path, count = tmp_path / f"a.{ending}", 40
    frames = np.random.default_rng(0).integers(0, 4, (count, 24, 20), dtype=np.uint8) * 60
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    options = {"lossless": True} if ending == "webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    in_order = [read_image(path, 3, page) for page in range(count)]
    decoded = []
    decode = PillowDecoder._decode
    monkeypatch.setattr(PillowDecoder, "_decode", lambda *a: (decoded.append(1), decode(*a))[1])
    for page in np.random.default_rng(1).permutation(count).tolist():
        assert np.array_equal(read_image(path, 3, page), in_order[page])
        assert np.array_equal(in_order[page][0], frames[page])
    assert len(decoded) <= 2 * count
