"""The benchmarks and checks in scripts/ run. What they measure is not tested.

They take more than 5 seconds because each imports torch in one to four new processes.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATASETS = ROOT.parent / "shared" / "datasets"


def run_script(command: str) -> str:
    script, *arguments = shlex.split(command)
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("benchmark_conv_transpose.py --quick", "times as fast as torch's in the geometric"),
        ("benchmark_step.py --quick", "float32: our step over the bare step"),
        ("benchmark_training.py --quick", "our loop over the plain loop"),
        pytest.param(
            f"benchmark_data.py --data '{DATASETS}' --quick",
            "times as fast as the plain loop",
            marks=pytest.mark.skipif(not DATASETS.exists(), reason=f"there is no {DATASETS}"),
        ),
        ("kill_and_resume.py --quick", "1 of 1: same weights"),
    ],
)
def test_a_script_runs_and_prints_its_result(command: str, shown: str) -> None:
    assert shown in run_script(command)


def test_the_benchmark_of_prediction_runs() -> None:
    output = run_script("benchmark_predict.py --quick --threads 1")
    rows = [line.split() for line in output.splitlines() if line.startswith("ours  ")]
    assert [row[1] for row in rows] == ["16", "0"] * 2  # two sizes of tiles
    assert [row[5] for row in rows] == ["1.562", "1.000", "1.266", "1.000"]  # computed / kept
    assert all(float(column) > 0 for row in rows for column in row[2:5])
    without_monai = "monai: left out, as it cannot be imported" in output
    assert without_monai != ("ours over monai" in output)
