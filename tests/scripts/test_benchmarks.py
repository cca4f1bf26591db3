"""The benchmarks run. What they measure is not tested."""

from pathlib import Path

import benchmark_calibration
import benchmark_conv_transpose
import benchmark_data
import benchmark_predict
import benchmark_results
import benchmark_review
import benchmark_step
import benchmark_training
import kill_and_resume
import pytest


def test_the_benchmark_of_the_layer_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_conv_transpose.main(["--quick"]) == 0
    assert "times as fast as torch's in the geometric mean" in capsys.readouterr().out


def test_the_benchmark_of_data_loading_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_data.main(["--quick"]) == 0
    assert "from files: " in capsys.readouterr().out


def test_the_benchmark_of_training_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_training.main(["--quick"]) == 0
    assert "our loop over the plain loop" in capsys.readouterr().out


def test_the_benchmark_of_a_step_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_step.main(["--quick"]) == 0
    assert "float32: our step over the bare step" in capsys.readouterr().out


def test_the_benchmark_of_prediction_counts_tiles_and_pixels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert benchmark_predict.main(["--quick"]) == 0
    output = capsys.readouterr().out
    rows = [line.split() for line in output.splitlines() if line.startswith("ours  ")]
    assert [row[1] for row in rows] == ["16", "0"] * 2  # the overlaps, with two sizes of tiles
    assert [row[5] for row in rows] == ["1.562", "1.000", "1.266", "1.000"]  # computed pixels
    assert all(float(column) > 0 for row in rows for column in row[2:5])
    assert ("monai: left out" in output) != ("ours over monai" in output)


def test_the_benchmark_of_folders_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_predict.main(["--folder", "--quick"]) == 0
    assert "2 PNGs of 64 x 64: " in capsys.readouterr().out


# More than 5 seconds: three new processes train.
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "1 of 1: same weights"),
        # A series is trained, stopped and resumed.
        (["--signals", "1"], "1 of 1: ended in time, same weights"),
    ],
    ids=["killed", "signalled"],
)
def test_a_stopped_and_resumed_run_has_the_same_weights(
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = ["--folder", str(tmp_path / "new")]
    monkeypatch.setattr("sys.argv", ["kill_and_resume.py", "--quick", *words, *folder])
    code = kill_and_resume.main()
    shown = capsys.readouterr()
    assert code == 0, shown
    assert line in shown.out


def test_the_benchmark_of_results_runs(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_results.main([str(data_root), "--quick", "--candidates", "ours"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["candidate", "ours"]
    assert 0 < float(lines[-1].split()[1]) <= 1


def test_the_benchmark_of_the_review_runs(
    data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark_review.main([str(data_root), "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("data ")
    assert lines[-1].split()[:3] == ["data", "0", "3"]


def test_the_benchmark_of_calibration_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_calibration.main(["--quick"]) == 0
    output = capsys.readouterr().out
    assert "4 images, 5 halves: expected calibration error " in output
    assert "no promise: half of the images is less than 19" in output
