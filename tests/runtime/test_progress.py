import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from unet.runtime.progress import Progress, show_progress


def test_elsewhere_than_in_a_terminal_there_is_a_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(Progress, "_last_line", 0.0)
    for _ in show_progress(range(20), "predict", "image"):
        now += 1
    assert capsys.readouterr().err.splitlines() == [
        "predict: 5 of 20 images, 1 images/s, 00:15 left",
        "predict: 10 of 20 images, 1 images/s, 00:10 left",
        "predict: 15 of 20 images, 1 images/s, 00:05 left",
        "predict: 20 of 20 images, 1 images/s, 00:00 left",
    ]


def test_the_progress_of_short_items_is_not_shown_within_that_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(Progress, "_last_line", 0.0)
    with Progress(2, "predict", "image") as outer:
        for title, seconds in (("small", 1), ("large", 3)):
            for _ in show_progress(range(3), title, "tile"):
                now += seconds
            outer.update()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "large: 2 of 3 tiles",
    ]


def test_only_the_first_process_shows_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(Progress, "_last_line", 0.0)
    for _ in show_progress(range(3), "predict", "image"):
        now += 60
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [40, 60, 100])
def test_a_bar_fits_into_the_terminal(columns: int) -> None:
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    code = (
        "import time\nfrom unet.runtime.progress import show_progress\n"
        "for _ in show_progress(range(100), 'a name that is rather long.tif', 'image', True):\n"
        "    time.sleep(0.005)"
    )
    command = [sys.executable, "-c", code]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    subprocess.run(command, stdout=side, stderr=side, env=environment, check=True)
    text = os.read(main, 100_000).decode()
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert all(len(line) <= columns for line in lines)
    last = lines[-1]
    assert "100/100" in last
    assert last.startswith("a na")
    assert len(re.findall("█", last)) >= 6, last
    assert ("images/s" in last) == (columns >= 60)
