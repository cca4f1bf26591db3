"""The command `unet predict` as a script, also of a clone that is not installed."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.argv[:1] = ["unet", "predict"]
    runpy.run_module("unet", run_name="__main__")
