import numpy as np
import pytest
import torch

from unet.data.normalization import Method, Normalization, normalization_from_sums

METHODS: tuple[Method, ...] = ("given", "image", "percentiles")


def numbers_for(method: Method) -> Normalization:
    numbers = {"mean": (0.4, 0.1, 3.0), "std": (0.2, 7.0, 0.3)} if method == "given" else {}
    return Normalization(method, **numbers)


def test_normalization_is_by_the_statistics_of_all_pixels() -> None:
    image = torch.rand(2, 40, 50) * torch.tensor([1.0, 3.0])[:, None, None]
    normalization = normalization_from_sums(
        2000, image.sum((1, 2)).double().numpy(), image.square().sum((1, 2)).double().numpy()
    )
    torch.testing.assert_close(normalization.mean, image.mean((1, 2)), rtol=1e-4, atol=0)
    normalised = normalization(image)
    torch.testing.assert_close(normalised.mean((1, 2)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std((1, 2)), torch.ones(2), atol=1e-3, rtol=0)


def test_a_constant_channel_does_not_divide_by_0() -> None:
    image = torch.full((1, 4, 5), 0.25)
    for one in (
        normalization_from_sums(20, np.array([5.0]), np.array([1.25])),
        Normalization("image"),
        Normalization("percentiles"),
    ):
        assert torch.equal(one(image), torch.zeros(1, 4, 5))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_little_contrast_is_normalised_as_much_is(scale: float) -> None:
    image = (torch.rand(1, 50, 60) + 1) * scale
    sums, squares = image.double().sum((1, 2)).numpy(), image.double().square().sum((1, 2)).numpy()
    for one in (
        normalization_from_sums(3000, sums, squares),
        Normalization("image"),
        Normalization("percentiles"),
    ):
        assert float(one(image).std()) == pytest.approx(1, rel=0.02)


def test_each_image_is_normalised_by_its_own_statistics() -> None:
    image = torch.rand(2, 30, 40) * torch.tensor([5.0, 0.1])[:, None, None] + 7
    normalised = Normalization("image")(image)
    torch.testing.assert_close(normalised.mean((1, 2)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std((1, 2)), torch.ones(2), atol=1e-3, rtol=0)


def test_percentiles_clip_outliers() -> None:
    image = torch.rand(1, 100, 100)
    plain = Normalization("percentiles")(image)
    image[0, 3, 4] = 1e6
    spiked = Normalization("percentiles")(image)
    plain[0, 3, 4] = spiked[0, 3, 4]
    torch.testing.assert_close(spiked, plain, atol=0.05, rtol=0)
    assert float(Normalization("image")(image).std()) == pytest.approx(1, rel=1e-3)
    assert float(Normalization("image")(image)[0, 50, 50]) == pytest.approx(-0.01, abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_normalised_image_by_image(method: Method) -> None:
    images, normalization = torch.rand(4, 3, 20, 30), numbers_for(method)
    assert torch.equal(normalization(images), torch.stack([normalization(one) for one in images]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_number_of_threads_changes_no_bit(method: Method, channels: int) -> None:
    image = torch.rand(3, 400, 500)[:channels]
    normalization = numbers_for(method)
    normalization.mean, normalization.std = (
        one[:channels] for one in (normalization.mean, normalization.std)
    )
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(normalization(image))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, results[0]) for one in results)


@pytest.mark.parametrize("method", METHODS)
def test_a_normalization_is_restored_from_its_dict(method: Method) -> None:
    image, normalization = torch.rand(3, 20, 30), numbers_for(method)
    again = Normalization(**normalization.to_dict())
    assert again.to_dict() == normalization.to_dict()
    assert torch.equal(again(image), normalization(image))
