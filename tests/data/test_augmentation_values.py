import numpy as np
import pytest
import torch

from unet.data.augmentation import Augmentation

ALL = {"gamma": 0.5, "color": 0.3, "blur": 1.5, "noise": 0.3, "jpeg": 30}


def picture(channels: int = 3) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    waves = [torch.sin(y / (5 + c)) + torch.cos(x / (4 + c)) for c in range(channels)]
    return torch.stack(waves)


def test_the_defaults_change_nothing_and_draw_no_random_number() -> None:
    rng = np.random.default_rng(0)
    assert torch.equal(Augmentation().change_values(picture(), rng), picture())
    assert rng.random() == np.random.default_rng(0).random()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", list(ALL))
def test_each_change_is_random_repeatable_and_of_its_size(name: str, channels: int) -> None:
    image = picture(channels)
    change = Augmentation(**{name: ALL[name]}).change_values
    one, same, other = (change(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == torch.float32
    assert one.shape == image.shape
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    differences = [
        (change(image, np.random.default_rng(seed)) - image).abs().mean() for seed in range(30)
    ]
    assert 0.005 < max(differences) < 0.5


def test_gamma_keeps_the_darkest_and_the_brightest_value_and_the_order() -> None:
    image = picture(1)
    bent = Augmentation(gamma=1.0).change_values(image, np.random.default_rng(0))
    assert float(bent.min()) == pytest.approx(float(image.min()), abs=1e-5)
    assert float(bent.max()) == pytest.approx(float(image.max()), abs=1e-5)
    order = image.flatten().argsort()
    assert (bent.flatten()[order].diff() >= -1e-6).all()


def test_color_changes_channels_differently() -> None:
    image = picture(1).expand(3, -1, -1)
    changed = Augmentation(color=0.5).change_values(image, np.random.default_rng(0))
    assert not torch.allclose(changed[0], changed[1])


def test_a_constant_image_stays_finite() -> None:
    for image in (torch.zeros(3, 20, 20), torch.ones(1, 3, 3)):
        changed = Augmentation(**ALL).change_values(image, np.random.default_rng(0))
        assert changed.isfinite().all()


def test_a_lower_quality_loses_more() -> None:
    image = picture() + torch.from_numpy(
        np.random.default_rng(0).normal(0, 0.5, (3, 48, 40)).astype(np.float32)
    )
    losses = [
        (Augmentation(jpeg=quality).change_values(image, np.random.default_rng(0)) - image)
        .abs()
        .mean()
        for quality in (5, 60, 100)
    ]
    assert losses[0] > losses[1] > losses[2]


def test_the_target_of_an_augmented_sample_is_not_changed() -> None:
    image, target = picture(), (picture(1)[0] > 0).long()
    plain = Augmentation(crop=(32, 32), rotate=20.0)
    changed = Augmentation(crop=(32, 32), rotate=20.0, **ALL)
    one, expected = plain(image, target, np.random.default_rng(3))
    other, got = changed(image, target, np.random.default_rng(3))
    assert torch.equal(expected, got)
    assert not torch.equal(one, other)
