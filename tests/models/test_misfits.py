import torch

from unet.models.weights import misfits


def test_weights_that_do_not_fit_are_named() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "count": torch.tensor(0)}
    assert misfits(own, own, own) == []
    assert misfits({**own, "old": torch.zeros(1)}, own, [*own, "old"]) == []
    found = {"a": torch.zeros(3, 2), "b": torch.zeros(4), "old": torch.zeros(1)}
    assert misfits(found, own, own) == [
        "a 3 x 2, expected 2 x 3",
        "count missing, expected a number",
        "old besides",
    ]
