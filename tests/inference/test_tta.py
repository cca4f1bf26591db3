from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_config, make_model
from torch import Tensor

from unet.build import build_network
from unet.inference.predictor import Ensemble, Predictor
from unet.inference.tta import TtaMode, View, list_views, mean_probabilities


@pytest.fixture
def model(tmp_path: Path) -> Predictor:
    torch.manual_seed(3)
    model = make_model(tmp_path)
    torch.nn.init.normal_(model.net.head.weight)
    return model


@pytest.mark.parametrize(
    ("tta", "count"),
    [((), 1), (("flips",), 4), (("turns",), 4), (("flips", "turns"), 8), (("scales",), 3),
     (("turns", "flips", "scales"), 24)],
)  # fmt: skip
def test_all_views_differ(tta: Sequence[TtaMode], count: int, model: Predictor) -> None:
    image = torch.rand(1, 12, 9)
    shown = [view.apply(image) for view in list_views(tta)]
    assert len(shown) == count
    for i, one in enumerate(shown):
        assert not any(torch.equal(one, other) for other in shown[:i])
    total = mean_probabilities(model, image, tta).sum(0)
    torch.testing.assert_close(total, torch.ones(12, 9))


@pytest.mark.parametrize("view", list_views(("flips", "turns")))
def test_undoing_a_view_restores_the_image(view: View) -> None:
    image = torch.rand(3, 5, 8)
    assert torch.equal(view.undo(view.apply(image), (5, 8)), image)
    rows, columns = view.reversed_axes
    ramps = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(8.0), indexing="ij"))
    first = view.apply(ramps)[:, 0, 0]
    assert (first > 0).tolist() == [rows, columns]


def test_undoing_a_scaled_view_restores_the_size() -> None:
    ramp = torch.arange(40.0).expand(1, 30, 40)
    for view in list_views(("scales", "turns")):
        shown = view.apply(ramp)
        assert sorted(shown.shape[1:]) == [round(30 * view.scale), round(40 * view.scale)]
        middle = (slice(None), slice(4, -4), slice(4, -4))
        back = view.undo(shown, (30, 40))
        torch.testing.assert_close(back[middle], ramp[middle], rtol=0, atol=0.05)


CHANGES: tuple[tuple[TtaMode, Callable[[Tensor], Tensor]], ...] = (
    ("flips", lambda x: x.flip(-1)),
    ("flips", lambda x: x.flip(-2)),
    ("turns", lambda x: x.rot90(1, (-2, -1))),
)


@pytest.mark.parametrize("size", [(36, 52), (33, 17)])
@pytest.mark.parametrize(("mode", "change"), CHANGES)
def test_the_prediction_follows_flips_and_rotations_of_the_image(
    mode: TtaMode, change: Callable[[Tensor], Tensor], size: tuple[int, int], model: Predictor
) -> None:
    image = torch.rand(1, *size)
    straight, augmented = (
        (
            change(mean_probabilities(model, image, tta)),
            mean_probabilities(model, change(image), tta),
        )
        for tta in ((), (mode,))
    )
    torch.testing.assert_close(*augmented)
    assert not torch.allclose(*straight, atol=1e-3)  # not equal without augmentation


def test_views_in_tiles_equal_whole_views(model: Predictor, tmp_path: Path) -> None:
    image = torch.rand(1, 101, 83)
    tiled = replace(model, config=make_config(tmp_path, "tiling.size=[64,48]"))
    tta: tuple[TtaMode, ...] = ("flips", "turns", "scales")
    torch.testing.assert_close(
        mean_probabilities(tiled, image, tta), mean_probabilities(model, image, tta)
    )


def test_views_of_an_unpadded_network_in_tiles_equal_whole_views(tmp_path: Path) -> None:
    settings = "model={in_channels: 1, widths: [4, 6, 8], padding: valid}"
    config = make_config(tmp_path, settings, "augment.crop=null")
    net = build_network(config, torch.device("cpu"))
    torch.nn.init.normal_(net.head.weight)
    whole = replace(make_model(tmp_path), config=config, net=net)
    tiling = replace(config.tiling, size=(92, 96))
    tiled = replace(whole, config=replace(config, tiling=tiling))
    image = torch.rand(1, 101, 83)
    tta: tuple[TtaMode, ...] = ("flips", "turns", "scales")
    expected = mean_probabilities(whole, image, tta)
    torch.testing.assert_close(mean_probabilities(tiled, image, tta), expected)
    # A flip moves the image on the network's grid; with all flips the result does not change.
    mirrored = mean_probabilities(whole, image.flip(-1), ("flips",)).flip(-1)
    torch.testing.assert_close(mirrored, mean_probabilities(whole, image, ("flips",)))


def test_views_of_an_ensemble_are_the_mean_over_its_models(
    model: Predictor, tmp_path: Path
) -> None:
    image = torch.rand(1, 20, 30)
    other = make_model(tmp_path)
    together = mean_probabilities(Ensemble((model, other)), image, ("turns",))
    alone = [mean_probabilities(one, image, ("turns",)) for one in (model, other)]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))
