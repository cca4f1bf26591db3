import re
import resource
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from helpers import (
    PLACE,
    draw,
    make_config,
    make_model,
    write_raster,
    write_tiffs_that_windows_cannot_read,
    write_width_as_text,
)
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from unet import load_model, predict
from unet.build import build_network
from unet.checkpoint import save_checkpoint
from unet.cli.main import main
from unet.data.image_io import read_image, to_float
from unet.data.normalization import Normalization
from unet.inference.predict import Options, UnpredictedError, predict_files
from unet.inference.predict_geotiff import check_raster, predict_raster
from unet.inference.predictor import Ensemble, Model, Predictor
from unet.inference.tta import TtaMode, mean_probabilities

pytestmark = pytest.mark.usefixtures("workdir")

SIZE = (150, 117)


def model_of(root: Path, *overrides: str) -> Predictor:
    """An untrained model that draws both classes, in tiles of 64 pixels."""
    torch.manual_seed(3)
    config = make_config(root, "model.widths=[4,6,8]", "tiling.size=[64,64]", *overrides)
    net = build_network(config, torch.device("cpu")).eval()
    torch.nn.init.normal_(net.head.weight)
    channels = config.model.in_channels
    normalization = Normalization(mean=(0.4,) * channels, std=(0.2,) * channels)
    with torch.no_grad():
        image = normalization(torch.from_numpy(to_float(draw(channels, 64, 64))))
        scores = net(net.mirror_context(image)[None])[0]
        net.head.bias[0] += (scores[1] - scores[0]).median()
    return replace(make_model(root), net=net, config=config, normalization=normalization)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    save_checkpoint(path, model_of(tmp_path, "tiling.overlap=null").contents())
    return path


def whole(model: Model, path: Path, tta: tuple[TtaMode, ...] = ()) -> torch.Tensor:
    """Probabilities of the whole image at once."""
    channels = model.config.model.in_channels
    image = torch.from_numpy(to_float(read_image(path, channels)))
    tiling = replace(model.config.tiling, size=(4096, 4096))
    members = [replace(one, config=replace(one.config, tiling=tiling)) for one in model.members]
    return mean_probabilities(Ensemble(tuple(members)), image, tta)


def read_mask(path: str | Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            pixels: np.ndarray = file.read()
    return pixels


def test_a_raster_in_windows_equals_the_whole_image(checkpoint: Path) -> None:
    path = write_raster("a.tif", draw(*SIZE), tiled=True, blockxsize=32, blockysize=32)
    predict_files([checkpoint], ["a.tif"], Path("out"), Options(probabilities=True))
    model = load_model(checkpoint)
    assert model.config.tiling.size == (64, 64)
    expected = whole(model, path)
    ids = expected.argmax(0).numpy()
    assert 0.1 < ids.mean() < 0.9
    assert np.array_equal(read_mask("out/a.tif")[0], ids * 200)
    assert np.array_equal(read_mask("out/a.tif")[0], predict(model, path) * 200)
    scores = torch.from_numpy(read_mask("out/probabilities/a.tif"))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_the_mask_is_a_tiled_compressed_geotiff_with_georeference(checkpoint: Path) -> None:
    write_raster("a.tif", draw(*SIZE))
    predict_files([checkpoint], ["a.tif"], Path("out"), Options(probabilities=True))
    for name, count, dtype in (("a", 1, "uint8"), ("probabilities/a", 2, "float32")):
        with rasterio.open(f"out/{name}.tif") as file:
            assert file.crs == rasterio.CRS.from_string("EPSG:32632")
            assert file.transform == PLACE["transform"]
            assert (file.height, file.width) == SIZE
            assert file.count == count
            assert set(file.dtypes) == {dtype}
            assert count == 1 or file.descriptions == ("ground", "box")
            assert file.block_shapes == [(16, 16)] * count
            assert file.compression.value == "DEFLATE"
            assert file.nodata is None
    assert sorted(Path("out").rglob("*.tif")) == [
        Path("out/a.tif"),
        Path("out/probabilities/a.tif"),
    ]


@pytest.mark.parametrize("tta", [("flips",), ("turns",), ("turns", "flips")])
def test_views_of_windows_are_those_of_the_whole_raster(
    tta: tuple[TtaMode, ...], tmp_path: Path
) -> None:
    path = write_raster("a.tif", draw(75, 61))  # no multiples of the output stride
    model = model_of(tmp_path)
    predict_raster(model, path, None, Path("p.tif"), tta)
    scores = torch.from_numpy(read_mask("p.tif"))
    torch.testing.assert_close(scores, whole(model, path, tta), rtol=0, atol=1e-5)


UNPADDED = "model={in_channels: 1, widths: [4, 6, 8], padding: valid, norm: none}"


@pytest.mark.parametrize("tta", [(), ("flips", "turns")])
@pytest.mark.parametrize("size", [(131, 117), (70, 300), (9, 5)])
def test_an_unpadded_network_mirrors_the_raster_only_at_its_borders(
    tta: tuple[TtaMode, ...], size: tuple[int, int], tmp_path: Path
) -> None:
    path = write_raster("a.tif", draw(*size))
    model = model_of(tmp_path, UNPADDED, "augment.crop=null", "tiling.size=[92,96]")
    seen = []
    model.net.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[2:]))
    predict_raster(model, path, None, Path("p.tif"), tta)
    assert max(max(shape) for shape in seen) <= 96
    scores = torch.from_numpy(read_mask("p.tif"))
    torch.testing.assert_close(scores, whole(model, path, tta), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tta", [(), ("flips",)])
def test_an_ensemble_of_padded_and_unpadded_networks_equals_the_whole_image(
    tta: tuple[TtaMode, ...], tmp_path: Path
) -> None:
    path = write_raster("a.tif", draw(75, 61))
    unpadded = model_of(tmp_path, UNPADDED, "augment.crop=null", "tiling.size=[92,96]")
    model = Ensemble((model_of(tmp_path), unpadded))
    predict_raster(model, path, None, Path("p.tif"), tta)
    scores = torch.from_numpy(read_mask("p.tif"))
    torch.testing.assert_close(scores, whole(model, path, tta), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(131, 117), (61, 5)])
def test_blended_windows_of_an_unpadded_network_equal_its_tiles(
    size: tuple[int, int], tmp_path: Path
) -> None:
    path = write_raster("a.tif", draw(*size))
    unpadded = UNPADDED.replace("none", "group").replace("8]", "8, 8]")
    tiling = "tiling={size: [140, 148], overlap: 11}"
    model = model_of(tmp_path, unpadded, "augment.crop=null", tiling)
    predict_raster(model, path, None, Path("p.tif"))
    expected = model.logits(torch.from_numpy(to_float(read_image(path, 1)))).softmax(0)
    torch.testing.assert_close(torch.from_numpy(read_mask("p.tif")), expected, rtol=0, atol=1e-5)


def test_an_ensemble_of_different_depths_equals_the_whole_image(tmp_path: Path) -> None:
    path = write_raster("a.tif", draw(131, 117))
    deep = model_of(tmp_path, "model.widths=[4,6,8,8]", "tiling.size=[128,128]")
    model = Ensemble((model_of(tmp_path), deep))
    predict_raster(model, path, Path("m.tif"), Path("p.tif"))
    scores = torch.from_numpy(read_mask("p.tif"))
    torch.testing.assert_close(scores, whole(model, path), rtol=0, atol=1e-5)


def test_rasters_of_colours_16_bits_and_floats_equal_the_whole_image(tmp_path: Path) -> None:
    colour = model_of(tmp_path, "model.in_channels=3")
    path = write_raster("rgb.tif", draw(3, 90, 70), photometric="RGB")
    predict_raster(colour, path, None, Path("p.tif"))
    scores = torch.from_numpy(read_mask("p.tif"))
    torch.testing.assert_close(scores, whole(colour, path), rtol=0, atol=1e-5)
    grey = model_of(tmp_path)
    for pixels in (draw(90, 70).astype(np.uint16) * 250, draw(90, 70).astype(np.float32) / 255):
        path = write_raster("grey.tif", pixels)
        predict_raster(grey, path, None, Path("p.tif"))
        scores = torch.from_numpy(read_mask("p.tif"))
        torch.testing.assert_close(scores, whole(grey, path), rtol=0, atol=1e-5)


def test_normalization_by_the_image_takes_statistics_of_the_whole_raster(tmp_path: Path) -> None:
    path = write_raster("a.tif", draw(131, 117))
    model = replace(model_of(tmp_path), normalization=Normalization(method="image"))
    predict_raster(model, path, None, Path("p.tif"))
    scores = torch.from_numpy(read_mask("p.tif"))
    torch.testing.assert_close(scores, whole(model, path), rtol=0, atol=1e-4)


def test_nodata_stays_nodata_and_its_value_changes_nothing_else(checkpoint: Path) -> None:
    pixels = draw(*SIZE)
    gone = np.zeros(SIZE, bool)
    gone[:64, :48] = True  # also whole blocks
    gone[110, 90] = True
    masks = []
    for value in (0, 255):  # the value there changes nothing
        masked = np.where(gone, np.uint8(value), pixels.clip(1, 254))
        write_raster(f"n{value}.tif", masked, nodata=value)
        predict_files([checkpoint], [f"n{value}.tif"], Path("out"), Options(probabilities=True))
        with rasterio.open(f"out/n{value}.tif") as file:
            assert file.nodata == 255
            masks.append(file.read(1))
        with rasterio.open(f"out/probabilities/n{value}.tif") as file:
            assert np.isnan(file.nodata)
            assert np.array_equal(np.isnan(file.read(1)), gone)
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[0] == 255, gone)
    # Outside the receptive field of nodata nothing changes.
    write_raster("all.tif", pixels.clip(1, 254))
    predict_files([checkpoint], ["all.tif"], Path("out"))
    outside = np.ones(SIZE, bool)
    outside[:94, :78] = False
    outside[80:141, 60:121] = False
    assert np.array_equal(masks[0][outside], read_mask("out/all.tif")[0][outside])


def test_each_model_of_an_ensemble_gets_its_own_mean_as_nodata(tmp_path: Path) -> None:
    pixels = draw(90, 80)
    pixels[20:60, 30:50] = 0
    path = write_raster("a.tif", pixels, nodata=0)
    dark, bright = (
        replace(model_of(tmp_path), normalization=Normalization(mean=(mean,), std=(0.2,)))
        for mean in (0.3, 0.8)
    )
    for name, model in (("d", dark), ("b", bright), ("both", Ensemble((dark, bright)))):
        predict_raster(model, path, None, Path(f"{name}.tif"))
    alone = [read_mask(f"{name}.tif") for name in "db"]
    assert np.nanmax(np.abs(alone[0] - alone[1])) > 0.01
    np.testing.assert_allclose(read_mask("both.tif"), np.mean(alone, axis=0), atol=1e-6)


@pytest.mark.parametrize("method", ["given", "image"])
def test_missing_pixels_of_a_float_band_get_the_mean(tmp_path: Path, method: str) -> None:
    model = model_of(tmp_path, "model.in_channels=3")
    numbers = Normalization(mean=(300, 200, 100), std=(9, 8, 7), method=method)
    model = replace(model, normalization=numbers)
    pixels = draw(3, 90, 70).astype(np.float32) + 100
    pixels[0, 20:40, 10:50] = -9999  # in one band only
    path = write_raster("gap.tif", pixels, nodata=-9999)
    predict_raster(model, path, Path("m.tif"), Path("p.tif"))
    assert (read_mask("m.tif") != 255).all()  # not nodata, as the other bands are valid
    if method == "image":
        there = np.ma.masked_equal(pixels.astype(float), -9999)
        mean, std = there.mean((1, 2)).tolist(), there.std((1, 2)).tolist()
        model = replace(model, normalization=Normalization(mean=tuple(mean), std=tuple(std)))
    gap = model.normalization.mean.numpy()[:, None, None]
    filled = write_raster("filled.tif", np.where(pixels == -9999, gap, pixels).astype(np.float32))
    predict_raster(model, filled, None, Path("f.tif"))
    np.testing.assert_allclose(read_mask("p.tif"), read_mask("f.tif"), atol=1e-4)


def test_a_georeference_that_geotiff_cannot_hold_is_kept(checkpoint: Path) -> None:
    rotated = rasterio.CRS.from_string(
        "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +R=6371229 +no_defs"
    )
    path = write_raster("a.tif", draw(90, 70), crs=rotated)
    with rasterio.open(path) as file:
        expected = file.crs
    predict_files([checkpoint], ["a.tif"], Path("out"))
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.tif", "a.tif.aux.xml"]
    with rasterio.open("out/a.tif") as file:
        assert file.crs == expected
        assert file.transform == PLACE["transform"]


def test_nodata_is_a_value_of_no_class(tmp_path: Path) -> None:
    pixels = draw(40, 30)
    pixels[:9] = 0
    path = write_raster("a.tif", pixels, nodata=0)
    for values, nodata in (((0, 255), 254), ((0, 300), 65535), (([9, 255, 3], [255, 254, 0]), 253)):
        model = model_of(tmp_path)
        data = replace(model.config.data, classes={"a": values[0], "b": values[1]})
        model = replace(model, config=replace(model.config, data=data))
        predict_raster(model, path, Path("m.tif"))
        with rasterio.open("m.tif") as file:
            assert file.nodata == nodata
            assert (file.read()[:, :9] == nodata).all()
            assert (file.read()[:, 9:] != nodata).all()


def test_an_alpha_band_is_nodata_and_not_a_channel(tmp_path: Path) -> None:
    pixels = draw(4, 90, 70)
    pixels[3] = 255
    pixels[3, 20:30] = 0
    path = write_raster("a.tif", pixels, photometric="RGB", ALPHA="YES")
    predict_raster(model_of(tmp_path, "model.in_channels=3"), path, Path("m.tif"))
    with rasterio.open("m.tif") as file:
        assert np.array_equal(file.read(1) == file.nodata, pixels[3] == 0)


def test_nan_is_nodata_even_if_it_is_not_declared(checkpoint: Path) -> None:
    pixels = draw(90, 70).astype(np.float32) / 255
    pixels[50, 60] = np.nan
    write_raster("a.tif", pixels)
    write_raster("b.tif", pixels, nodata=np.nan)
    predict_files([checkpoint], ["a.tif", "b.tif"], Path("out"))
    for name in ("a", "b"):
        assert read_mask(f"out/{name}.tif")[0, 50, 60] == 255


def test_an_interruption_leaves_no_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster("a.tif", draw(*SIZE))
    seen = []

    def stop(_: Predictor, image: torch.Tensor, **_kwargs: bool) -> torch.Tensor:
        seen.append(image)
        if len(seen) == 9:
            raise KeyboardInterrupt
        return torch.zeros(2, *image.shape[1:])

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "logits", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_files([checkpoint], ["a.tif"], Path("out"), Options(probabilities=True))
    assert [path for path in Path("out").rglob("*") if path.is_file()] == []
    # No window is larger than a tile.
    assert max(max(image.shape[1:]) for image in seen) <= 64


@pytest.mark.parametrize("room", [0, 300, -1])
def test_a_full_disk_is_reported_and_leaves_no_file(checkpoint: Path, room: int) -> None:
    """A limit on the file size; with -1 only the last byte of the mask is missing."""
    write_raster("a.tif", draw(100, 70))
    predict_files([checkpoint], ["a.tif"], Path("out"))
    size = Path("out/a.tif").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room if room >= 0 else size - 1, before[1]))
    try:
        with pytest.raises(OSError, match=r"out2/a\.tif: cannot be written; check its perm"):
            predict_files([checkpoint], ["a.tif"], Path("out2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(Path("out2").iterdir())


def test_tiffs_of_all_types_are_predicted(checkpoint: Path) -> None:
    Image.fromarray(draw(40, 30)).save("plain.tif")
    write_raster("big.tif", draw(40, 30), crs=None, transform=None, BIGTIFF="YES")
    write_raster("order.tif", draw(40, 30), BIGTIFF="YES", ENDIANNESS="BIG")
    options = Options(windows=True)
    predict_files([checkpoint], ["plain.tif", "big.tif", "order.tif"], Path("out"), options)
    predict_files([checkpoint], ["plain.tif"], Path("out"), Options(windows=False))
    expected = read_mask("out/plain.tif")
    for name in ("big.tif", "order.tif", "plain.png"):
        with Image.open(f"out/{name}") as file:
            assert np.array_equal(np.asarray(file), expected[0])


@pytest.mark.parametrize(
    ("settings", "tiles"),
    [
        ("{norm: group, widths: [4, 6, 8], in_channels: 1}", "[64, 48]"),
        ("{norm: instance, widths: [4, 6, 8], in_channels: 1}", "[64, 48]"),
        ("{encoder: mobilenet_v3_large, widths: [4, 4, 4, 4, 4], in_channels: 1}", "[96, 64]"),
    ],
)
@pytest.mark.parametrize("size", [SIZE, (61, 130), (130, 61), (20, 30)])
def test_blended_windows_equal_blended_tiles(
    settings: str, tiles: str, size: tuple[int, int], tmp_path: Path
) -> None:
    path = write_raster("a.tif", draw(*size))
    overrides = [f"model={settings}", f"tiling={{size: {tiles}, overlap: 20}}"]
    model = model_of(tmp_path, *overrides)
    predict_raster(model, path, Path("m.tif"), Path("p.tif"))
    expected = model.logits(torch.from_numpy(to_float(read_image(path, 1)))).softmax(0)
    torch.testing.assert_close(torch.from_numpy(read_mask("p.tif")), expected, rtol=0, atol=1e-5)
    assert np.array_equal(read_mask("m.tif")[0], expected.argmax(0).numpy() * 200)


def test_models_that_need_the_whole_image_are_refused(tmp_path: Path) -> None:
    model, blending = model_of(tmp_path), model_of(tmp_path, "model.norm=group")
    alone = r"a\.tif: got a model of norm group and .*, expected the model alone; turn windows off"
    with pytest.raises(ValueError, match=alone):
        check_raster(blending, "a.tif", ("flips",))
    with pytest.raises(ValueError, match=alone):
        check_raster(Ensemble((model, blending)), "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: got test-time augmentation by scales"):
        check_raster(model, "a.tif", ("scales",))


def test_percentiles_are_refused_in_windows(tmp_path: Path) -> None:
    model = replace(model_of(tmp_path), normalization=Normalization(method="percentiles"))
    with pytest.raises(ValueError, match=r"a\.tif: got normalization percentiles"):
        check_raster(Ensemble((model_of(tmp_path), model)), "a.tif")


def test_options_that_need_the_whole_mask_are_refused(checkpoint: Path) -> None:
    write_raster("a.tif", draw(40, 30))
    for options, name in (
        (Options(min_size=2), "min_size"),
        (Options(keep_largest=True), "keep_largest"),
        (Options(overlay=True), "overlay"),
        (Options(instances=True), "instances"),
        (Options(uncertainty=True), "uncertainty"),
    ):
        with pytest.raises(ValueError, match=f"{name}: got a.tif, a raster that is read in windo"):
            predict_files([checkpoint], ["a.tif"], Path("out"), options)
        options = replace(options, windows=False)
        predict_files([checkpoint], ["a.tif"], Path(name), options)


@pytest.mark.parametrize(
    ("pixels", "profile", "message"),
    [
        (draw(5, 40, 30), {}, r"got an image of 5 channels, expected model.in_channels, 1"),
        (draw(40, 30).astype(np.complex64), {}, "got values of complex64, expected integers or"),
    ],
)
def test_rasters_with_other_bands_are_reported(
    checkpoint: Path, pixels: np.ndarray, profile: dict[str, Any], message: str
) -> None:
    write_raster("a.tif", pixels, **profile)
    with pytest.raises(UnpredictedError, match=f"a.tif: {message}"):
        predict_files([checkpoint], ["a.tif"], Path("out"))
    assert not Path("out").exists() or not list(Path("out").iterdir())


def test_tiffs_that_windows_cannot_read_are_reported_and_the_others_predicted(
    checkpoint: Path,
) -> None:
    write_tiffs_that_windows_cannot_read()
    Image.fromarray(draw(40, 30)).save("d.tif")
    with pytest.raises(UnpredictedError) as caught:
        predict_files(
            [checkpoint], [f"{n}.tif" for n in "abcd"], Path("out"), Options(windows=True)
        )
    palette, turned, stack, _ = str(caught.value).splitlines()
    assert palette.startswith("a.tif: got an image of 3 channels, expected model.in_channels, 1")
    assert turned.startswith("b.tif: got an EXIF orientation, expected an upright image")
    assert turned.endswith("or turn windows off to read it whole, without georeference")
    assert stack.endswith("as it is read in windows; turn windows off to read it page by page")
    assert [path.name for path in Path("out").iterdir()] == ["d.tif"]


def test_a_damaged_raster_is_reported_and_the_others_predicted(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tif", "b.tif"):
        write_raster(name, draw(*SIZE), compress="deflate", tiled=True)
    content = Path("a.tif").read_bytes()
    Path("a.tif").write_bytes(content[: len(content) // 2])
    Image.fromarray(draw(40, 30)).save("c.tif")
    write_width_as_text(Path("c.tif"))
    assert main(["predict", str(checkpoint), "a.tif", "b.tif", "c.tif", "-o", "out"]) == 1
    shown = capsys.readouterr().err
    assert "error: a.tif: cannot be read" in shown
    assert "\nc.tif: cannot be read" in shown
    assert [path.name for path in Path("out").iterdir()] == ["b.tif"]


def test_the_extra_rasterio_is_named_if_it_is_missing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_raster("a.tif", draw(40, 30))
    monkeypatch.setattr("unet.runtime.optional.find_spec", lambda _: None)
    expected = r"a\.tif.*: needs rasterio; install it with pip install .*\[tiff\]"
    with pytest.raises(ValueError, match=expected):
        predict_files([checkpoint], ["a.tif"], Path("out"))


def test_the_palette_of_the_training_masks_is_written(tmp_path: Path) -> None:
    path = write_raster("a.tif", draw(40, 30))
    palette = tuple((i, 2 * i % 256, 7) for i in range(256))
    predict_raster(replace(model_of(tmp_path), palette=palette), path, Path("m.tif"))
    with rasterio.open("m.tif") as file:
        assert file.colormap(1)[200] == (200, 144, 7, 255)


def test_a_progress_bar_counts_tiles(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    write_raster("a.tif", draw(*SIZE))
    predict_files([checkpoint], ["a.tif"], Path("out"))
    shown = capsys.readouterr().err
    assert re.search(r"predict 1/1 .*image", shown)
    assert re.search(r"a\.tif \d+/80 .*tile", shown)
