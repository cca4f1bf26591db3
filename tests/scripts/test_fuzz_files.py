import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_damaged_files_give_pixels_or_an_error_in_words(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/fuzz_files.py", "--count", "6", "--folder", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GeoTIFF: " in done.stdout
    assert "pixels" in done.stdout
    assert "error" in done.stdout
