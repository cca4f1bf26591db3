from pathlib import Path

import numpy as np
import pytest
import rasterio
from helpers import (
    PLACE,
    draw,
    write_raster,
    write_tiffs_that_windows_cannot_read,
    write_width_as_text,
)
from PIL import Image

from unet.data.image_types import ReadOptions
from unet.inference.geotiff import (
    Block,
    Raster,
    Span,
    block_side,
    create_raster,
    file_tile,
    is_raster,
    open_raster,
)

pytestmark = pytest.mark.usefixtures("workdir")


def test_rasters_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(draw(40, 30))
    for name in ("plain.tif", "plain.png"):
        image.save(name)
    write_raster("place.tif", draw(40, 30))
    write_raster("nodata.tif", draw(40, 30), crs=None, transform=None, nodata=0)
    write_raster("big.tif", draw(40, 30), crs=None, transform=None, BIGTIFF="YES")
    write_raster("order.tif", draw(40, 30), BIGTIFF="YES", ENDIANNESS="BIG")
    Path("damaged.tif").write_bytes(b"II*\0")
    image.save("text.tif")
    write_width_as_text(Path("text.tif"))
    Path("empty.tif").touch()
    auto, always = ({p.name for p in Path().iterdir() if is_raster(p, w)} for w in (None, True))
    assert auto == {"place.tif", "nodata.tif", "big.tif", "order.tif"}
    assert always - {"damaged.tif", "text.tif"} == auto | {"plain.tif"}
    assert not any(is_raster(path, False) for path in Path().iterdir())
    monkeypatch.setattr("unet.inference.geotiff.LARGEST_IN_MEMORY", 1000)
    assert is_raster("plain.tif")
    assert not is_raster("plain.png")


def test_blocks_are_read_as_images_and_mirrored_beyond_the_raster() -> None:
    pixels = draw(40, 30)
    path = write_raster("a.tif", pixels)
    with open_raster(path, 1, ReadOptions()) as raster:
        assert raster.size == (40, 30)
        image = raster.read(Block(Span(3, 9), Span(20, 30)))
        assert np.array_equal(image, pixels[None, 3:9, 20:30])
        everything = Block(Span(-8, 45), Span(-2, 37))
        padded = np.pad(pixels, ((8, 5), (2, 7)), mode="symmetric")
        np.testing.assert_allclose(raster.image(everything)[0], padded / 255, atol=1e-6)


def test_nodata_is_missing() -> None:
    pixels = draw(3, 20, 30)
    pixels[:, 2:5, 7] = 0
    path = write_raster("a.tif", pixels, photometric="RGB", nodata=0)
    block = Block(Span(0, 20), Span(0, 30))
    with open_raster(path, 3, ReadOptions()) as raster:
        assert raster.can_miss
        valid = raster.valid(block)
        image = raster.image(block).numpy()
    assert (~valid).sum() == 3
    assert not valid[2:5, 7].any()
    assert np.isnan(image[:, ~valid]).all()
    np.testing.assert_allclose(image[:, valid], pixels[:, valid] / 255, atol=1e-6)


def test_orientations_and_stacks_are_refused_and_palettes_read() -> None:
    write_tiffs_that_windows_cannot_read()
    block = Block(Span(0, 3), Span(0, 2))
    for name, message in (
        ("a", r"^a\.tif: got an image of 3 channels, expected"),
        ("b", r"^b\.tif: got an EXIF orientation, expected an upright image"),
        ("c", r"^c\.tif: got 2 pages \(axes IYX\), expected one image"),
    ):
        with (
            open_raster(Path(f"{name}.tif"), 2, ReadOptions()) as raster,
            pytest.raises(ValueError, match=message),
        ):
            raster.read(block)
    with open_raster(Path("a.tif"), 3, ReadOptions()) as raster:
        assert raster.read(block).shape == (3, 3, 2)


def write_like(source: Raster, path: Path, values: np.ndarray) -> None:
    with create_raster(path, source, 1, "float32", -1, (40, 30)) as file:
        file.write(values)


def test_a_raster_is_written_completely_with_the_georeference_of_its_source_or_not_at_all() -> None:
    path = write_raster("a.tif", draw(40, 30))
    values = np.arange(1200, dtype=np.float32).reshape(1, 40, 30)
    with open_raster(path, 1, ReadOptions()) as source:
        write_like(source, Path("out/b.tif"), values)
        with pytest.raises(ValueError, match="shape"):
            write_like(source, Path("out/c.tif"), values[0])
    assert [path.name for path in Path("out").iterdir()] == ["b.tif"]
    with rasterio.open("out/b.tif") as file:
        assert np.array_equal(file.read(), values)
        assert (file.transform, file.nodata) == (PLACE["transform"], -1)
        assert file.crs == rasterio.CRS.from_string("EPSG:32632")
        assert file.block_shapes == [(file_tile(40), file_tile(30))] == [(32, 16)]


@pytest.mark.parametrize("pixels", [-3, 0, 15, 16, 47, 100, 255, 256, 800])
def test_blocks_consist_of_whole_tiles_of_the_file(pixels: int) -> None:
    side = block_side(pixels)
    assert side % file_tile(side) == 0
    assert file_tile(side) % 16 == 0
    assert side <= max(pixels, 16)
