import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import make_config

from unet.checkpoint import load_checkpoint
from unet.inference.loading import load_model
from unet.inference.predictor import Predictor
from unet.runtime.device import time_dtypes
from unet.training.precision import choose_precision
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir")

CPU = torch.device("cpu")


def sleeper(slow: torch.dtype, factor: float) -> Callable[[torch.dtype, int], None]:
    def run(dtype: torch.dtype, side: int) -> None:
        time.sleep((side / 64) ** 2 * 0.004 * (factor if dtype == slow else 1))

    return run


def test_dtypes_are_timed_on_the_same_image() -> None:
    times = time_dtypes(sleeper(torch.bfloat16, 0.5), torch.bfloat16, 256)
    assert times is not None
    assert times[torch.bfloat16] < 0.8 * times[torch.float32]
    times = time_dtypes(sleeper(torch.bfloat16, 30), torch.bfloat16, 256)
    assert times is not None
    assert times[torch.bfloat16] > 2 * times[torch.float32]


def test_dtypes_of_a_short_computation_are_not_compared() -> None:
    assert time_dtypes(lambda *_: None, torch.bfloat16, 128) is None


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.1, "bfloat16"), (0.19, "float32")])
def test_the_faster_precision_is_chosen_and_named(
    data_root: Path,
    bfloat16: float,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = {torch.float32: 0.2, torch.bfloat16: bfloat16}
    monkeypatch.setattr("unet.training.precision.time_dtypes", lambda *_: times)
    config = make_config(data_root, "train.precision=auto", "train.epochs=1")
    assert choose_precision(config, CPU).train.precision == expected
    assert (
        f"train.precision: {expected}, because a training step with one image takes 0.2 s in "
        f"float32 and {bfloat16} s in bfloat16"
    ) in capsys.readouterr().out
    run = train(config)
    state = load_checkpoint(run / "last.pt")
    assert state["config"]["train"]["precision"] == expected == state["identity"]["dtype"]


def test_a_resumed_run_keeps_its_precision(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {torch.float32: 0.2, torch.bfloat16: 0.1}
    monkeypatch.setattr("unet.training.precision.time_dtypes", lambda *_: times)
    config = make_config(data_root, "train.precision=auto")
    run = train(config)
    (run / "last.pt").unlink()  # the one before is that of the second epoch
    times[torch.bfloat16] = 0.4
    train(config, resume=True)
    assert load_checkpoint(run / "last.pt")["identity"]["dtype"] == "bfloat16"


def test_an_explicit_precision_is_kept(data_root: Path) -> None:
    config = make_config(data_root, "train.precision=bfloat16")
    assert choose_precision(config, CPU) == config


@pytest.mark.parametrize(
    ("bfloat16", "overrides", "expected"),
    [
        (0.1, [], torch.bfloat16),
        (0.5, [], torch.float32),
        (0.5, ["train.precision=bfloat16"], torch.bfloat16),
        (0.1, ["train.precision=float32"], torch.float32),
    ],
)
def test_a_trained_model_keeps_its_precision_unless_it_is_slow_here(
    data_root: Path,
    bfloat16: float,
    overrides: list[str],
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = train(make_config(data_root, "train.precision=bfloat16", "train.epochs=1"))
    times = {torch.float32: 0.2, torch.bfloat16: bfloat16}
    monkeypatch.setattr("unet.inference.precision.time_dtypes", lambda *_: times)
    model = load_model(run / "best.pt", overrides=overrides)
    assert isinstance(model, Predictor)
    assert model.dtype == expected
