"""The command `unet predict` as a script."""

import sys

from unet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
