"""The command `unet evaluate` as a script."""

import sys

from unet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
