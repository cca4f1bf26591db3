"""The command `unet evaluate` as a script."""

import sys

from unet.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
