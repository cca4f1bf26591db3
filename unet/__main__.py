"""`python -m unet` is the `unet` command."""

import sys

from unet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
