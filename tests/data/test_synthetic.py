from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unet.data.synthetic import VALUES, draw_pair, draw_quickstart
from unet.metrics.confusion import confusion_matrix, scores
from unet.models.unet import UNet


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.png")}


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_quickstart(tmp_path / name, num_images=3, seed=seed)
    assert len(contents(tmp_path / "a")) == 6
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists; remove it to draw it again"):
        draw_quickstart(tmp_path)


def draw_batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, H, W), normalised, and targets (N, H, W)."""
    pairs = [draw_pair(np.random.default_rng([9, i])) for i in range(count)]
    images = torch.tensor(np.stack([image for image, _ in pairs])).float()[:, None]
    ids = [np.searchsorted(list(VALUES.values()), mask) for _, mask in pairs]
    return (images - images.mean()) / images.std(), torch.tensor(np.stack(ids))


def test_all_classes_occur_and_objects_touch() -> None:
    for seed in range(5):
        _, mask = draw_pair(np.random.default_rng([0, seed]))
        assert set(np.unique(mask)) == set(VALUES.values())
        # Objects of different classes touch.
        left, right = mask[:, :-1], mask[:, 1:]
        assert ((left != right) & (left > 0) & (right > 0)).any()


def mean_iou(net: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> float:
    with torch.no_grad():
        return scores(confusion_matrix(net(images).argmax(1), targets, 4)).mean_iou


def test_an_untrained_network_fails() -> None:
    torch.manual_seed(0)
    assert mean_iou(UNet(1, 4, widths=(8, 16)), *draw_batch(6)) < 0.3


@pytest.mark.parametrize("kernel_size", [1, 9])
def test_a_linear_model_fails(kernel_size: int) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 4, kernel_size, padding=kernel_size // 2)
    images, targets = draw_batch(6)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=60)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(images), targets)
        loss.backward()
        return loss

    first = closure().item()
    optimizer.step(closure)
    assert closure().item() < first
    # Scored even on what it was fitted to.
    assert mean_iou(net, images, targets) < 0.5
