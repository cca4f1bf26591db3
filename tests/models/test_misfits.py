import torch

from unet.models.weights import incompatible_weights


def test_weights_that_do_not_fit_are_named() -> None:
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "count": torch.tensor(0)}
    assert incompatible_weights(own, own, own) == []
    assert incompatible_weights({**own, "old": torch.zeros(1)}, own, [*own, "old"]) == []
    found = {"a": torch.zeros(3, 2), "b": torch.zeros(4), "old": torch.zeros(1)}
    assert incompatible_weights(found, own, own) == [
        "a 3 x 2, expected 2 x 3",
        "count missing, expected a number",
        "old besides",
    ]
