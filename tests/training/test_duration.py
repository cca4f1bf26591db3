import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import yaml
from helpers import assert_same_run, make_config, states_equal
from torch import Tensor

from unet.checkpoint import load_checkpoint
from unet.config.loader import load_config
from unet.config.schema import Config
from unet.runtime.signals import Stopped
from unet.training.duration import Costs, describe_duration, plan_minutes
from unet.training.step import TrainingStep
from unet.training.train import train

pytestmark = pytest.mark.usefixtures("workdir", "timed")

MINUTES = ["train.epochs=null", "train.minutes=2", "schedule.warmup_epochs=5"]


def planned(tmp_path: Path, costs: Costs, elapsed: float = 0.0) -> Config:
    return plan_minutes(make_config(tmp_path, *MINUTES), costs, elapsed)


def test_ten_validations_and_the_steps_between_them_fill_the_minutes(tmp_path: Path) -> None:
    costs = Costs(step=0.1, validation=1.0)
    config = planned(tmp_path, costs, elapsed=10)
    train = config.train
    assert (train.minutes, train.epochs, train.validate_every) == (None, 10, 1)
    assert train.steps_per_epoch == 100
    assert config.schedule.warmup_epochs == 1
    assert costs.total(config, 100) + 10 == 120


def test_steps_are_slower_until_the_images_are_decoded(tmp_path: Path) -> None:
    for num_decoding, steps in ((200, 800), (100_000, 500)):
        costs = Costs(step=0.1, validation=1.0, decoding=0.1, num_decoding=num_decoding)
        config = planned(tmp_path, costs, elapsed=10)
        assert 10 * (config.train.steps_per_epoch or 0) == steps
        assert costs.total(config, steps // 10) == pytest.approx(110)


@pytest.mark.parametrize(("validation", "epochs"), [(2.0, 6), (30.0, 1)])
def test_slow_validations_are_fewer(tmp_path: Path, validation: float, epochs: int) -> None:
    costs = Costs(step=0.1, validation=validation)
    config = planned(tmp_path, costs)
    assert config.train.epochs == epochs
    assert 118 < costs.total(config, config.train.steps_per_epoch or 0) <= 120


def test_a_time_that_is_too_short_is_an_error_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.minutes: got 2, expected at least 2.8: .* 50 s"):
        planned(tmp_path, Costs(step=5, validation=50.0), elapsed=50)


def test_the_plan_of_minutes_is_in_the_run_and_is_kept_on_resume(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unet.training.train.measure_costs", lambda *_: Costs(0.9, 6.0))
    timed = make_config(data_root, "train.epochs=null", "train.minutes=0.5")
    run = train(timed)
    config = load_config(run / "config.yaml")
    assert (config.train.minutes, config.train.epochs) == (None, 1)
    steps = config.train.steps_per_epoch
    assert steps is not None
    assert 20 <= steps <= 26  # less the time to read the data
    before = load_checkpoint(run / "last.pt")
    assert before["progress"]["step"] == steps
    monkeypatch.setattr("unet.training.train.measure_costs", lambda *_: Costs(0.1, 6.0))
    assert train(timed, resume=True) == run
    assert "keeps the number of steps that was chosen at its start" in capsys.readouterr().out
    assert states_equal(before, load_checkpoint(run / "last.pt"))


@pytest.mark.parametrize("override", ["train.ema_decay=0.9", "optimizer={name: sgd, lr: 0.01}"])
def test_measuring_leaves_no_trace_in_the_run(
    data_root: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["model={in_channels: 1, widths: [4, 8], dropout: 0.3}", override]
    measured = train(make_config(data_root, "name=a", *settings))
    monkeypatch.setattr("unet.training.train.measure_costs", lambda *_: Costs(1, 1))
    assert_same_run(measured, train(make_config(data_root, "name=b", *settings)))


def test_the_duration_of_a_training_is_in_words(tmp_path: Path) -> None:
    config = make_config(tmp_path, "train.epochs=20", "train.validate_every=10")
    assert describe_duration(config, Costs(0.25, 30), 60) == (
        "about 6 minutes: 1200 steps of 0.25 s, and 30 s for each validation"
    )


def test_the_config_of_a_run_can_be_trained_again(data_root: Path) -> None:
    run = train(
        make_config(data_root, "train.epochs=null", "train.minutes=0.1", "train.patience=1")
    )
    raw = yaml.safe_load((run / "config.yaml").read_text())
    assert raw["train"]["minutes"] is None
    assert raw["train"]["epochs"] >= 1
    assert load_config(run / "config.yaml").train.precision == "float32"


@pytest.mark.parametrize("times", [1, 6])
def test_a_signal_while_the_parts_are_timed_ends_the_training(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    count, gradients = 0, TrainingStep.gradients

    def stopping(step: TrainingStep, batches: Iterable[Sequence[Tensor]]) -> tuple[float, float]:
        nonlocal count
        count += 1
        if count == times:
            signal.raise_signal(signal.SIGTERM)
        return gradients(step, batches)

    monkeypatch.setattr(TrainingStep, "gradients", stopping)
    with pytest.raises(Stopped):
        train(make_config(data_root))
    assert not Path("runs/tiny").exists()
