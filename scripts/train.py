"""The command `unet train` as a script."""

import sys

from unet.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
