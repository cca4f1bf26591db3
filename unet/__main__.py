"""`python -m unet` is the `unet` command."""

import sys

if __name__ == "__main__":
    try:
        from unet.cli.main import run
    except ModuleNotFoundError as error:  # a clone that is not installed
        from unet.runtime.optional import install_command

        print(
            f"error: the package {error.name} is not installed; install unet with its packages: "
            f"{install_command()}",
            file=sys.stderr,
        )
        sys.exit(2)
    run()
