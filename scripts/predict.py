"""The command `unet predict` as a script."""

import sys

from unet.cli import main

sys.exit(main(["predict", *sys.argv[1:]]))
