from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import make_config, make_model
from torch import Tensor

from unet.build import build_network
from unet.inference.predictor import Predictor
from unet.inference.tta import Kind, View, probabilities, views


@pytest.fixture
def model(tmp_path: Path) -> Predictor:
    torch.manual_seed(3)
    model = make_model(tmp_path)
    torch.nn.init.normal_(model.net.head.weight)
    return model


@pytest.mark.parametrize(
    ("kinds", "count"),
    [((), 1), (("flips",), 4), (("turns",), 4), (("flips", "turns"), 8), (("scales",), 3),
     (("turns", "flips", "scales"), 24)],
)  # fmt: skip
def test_every_view_is_another_and_their_number_is_told(
    kinds: Sequence[Kind], count: int, model: Predictor
) -> None:
    image = torch.rand(1, 12, 9)
    seen = [view.show(image) for view in views(kinds)]
    assert len(seen) == count
    for i, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:i])
    total = probabilities(model, image, kinds).sum(0)
    torch.testing.assert_close(total, torch.ones(12, 9))  # the mean of so many


@pytest.mark.parametrize("view", views(("flips", "turns")))
def test_a_view_is_laid_back_over_the_image(view: View) -> None:
    image = torch.rand(3, 5, 8)
    assert torch.equal(view.back(view.show(image), (5, 8)), image)
    rows, columns = view.reversed_axes
    ramps = torch.stack(torch.meshgrid(torch.arange(5.0), torch.arange(8.0), indexing="ij"))
    first = view.show(ramps)[:, 0, 0]
    assert (first > 0).tolist() == [rows, columns]


def test_scaled_views_are_laid_back_at_the_images_size() -> None:
    ramp = torch.arange(40.0).expand(1, 30, 40)
    for view in views(("scales", "turns")):
        seen = view.show(ramp)
        assert sorted(seen.shape[1:]) == [round(30 * view.scale), round(40 * view.scale)]
        middle = (slice(None), slice(4, -4), slice(4, -4))
        back = view.back(seen, (30, 40))
        torch.testing.assert_close(back[middle], ramp[middle], rtol=0, atol=0.05)


CHANGES: tuple[tuple[Kind, Callable[[Tensor], Tensor]], ...] = (
    ("flips", lambda x: x.flip(-1)),
    ("flips", lambda x: x.flip(-2)),
    ("turns", lambda x: x.rot90(1, (-2, -1))),
)


@pytest.mark.parametrize("size", [(36, 52), (33, 17)])
@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_what_changes_the_image_changes_the_prediction_alike(
    kind: Kind, change: Callable[[Tensor], Tensor], size: tuple[int, int], model: Predictor
) -> None:
    image = torch.rand(1, *size)
    straight, augmented = (
        (change(probabilities(model, image, kinds)), probabilities(model, change(image), kinds))
        for kinds in ((), (kind,))
    )
    torch.testing.assert_close(*augmented)
    assert not torch.allclose(*straight, atol=1e-3)  # without, it does not hold


def test_views_go_through_in_tiles(model: Predictor, tmp_path: Path) -> None:
    image = torch.rand(1, 101, 83)
    tiled = replace(model, config=make_config(tmp_path, "tiling.size=[64,48]"))
    kinds: tuple[Kind, ...] = ("flips", "turns", "scales")
    torch.testing.assert_close(
        probabilities(tiled, image, kinds), probabilities(model, image, kinds)
    )


def test_views_go_through_an_unpadded_network_in_tiles(tmp_path: Path) -> None:
    settings = "model={in_channels: 1, widths: [4, 6, 8], padding: valid}"
    config = make_config(tmp_path, settings, "augment.crop=null")
    net = build_network(config, torch.device("cpu"))
    torch.nn.init.normal_(net.head.weight)
    whole = replace(make_model(tmp_path), config=config, net=net)
    tiling = replace(config.tiling, size=(92, 96))
    tiled = replace(whole, config=replace(config, tiling=tiling))
    image = torch.rand(1, 101, 83)
    kinds: tuple[Kind, ...] = ("flips", "turns", "scales")
    expected = probabilities(whole, image, kinds)
    torch.testing.assert_close(probabilities(tiled, image, kinds), expected)
    # Where a view begins is another place of the network's grid, and all are seen.
    mirrored = probabilities(whole, image.flip(-1), ("flips",)).flip(-1)
    torch.testing.assert_close(mirrored, probabilities(whole, image, ("flips",)))


def test_an_ensembles_views_are_the_mean_of_its_models(model: Predictor, tmp_path: Path) -> None:
    image = torch.rand(1, 20, 30)
    other = make_model(tmp_path)
    together = probabilities(replace(model, others=(other,)), image, ("turns",))
    alone = [probabilities(one, image, ("turns",)) for one in (model, other)]
    torch.testing.assert_close(together, torch.stack(alone).mean(0))
