"""The `unet` command, which is also `python -m unet`."""

import signal
import sys


def start() -> None:
    """Run the command of this process and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while modules are imported
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


if __name__ == "__main__":
    start()
