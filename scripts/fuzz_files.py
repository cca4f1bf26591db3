"""Read image files with random damage: the result is pixels or an error in words.

Each file has some of its bytes changed or its end cut off, and is read whole and, if it is a TIFF,
in windows. Every format runs in a process of its own with at most 4 GiB of memory; a file that
takes longer than 10 seconds of CPU time, or 200 seconds, ends it. Exits with 1 if anything else
than pixels, ValueError or FileNotFoundError came of a file; that file is then kept.
"""

import argparse
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import tifffile
from PIL import Image

from unet.data.image_file import open_image
from unet.data.image_io import read_image
from unet.data.image_types import ReadOptions

SECONDS = 10
MEMORY = 4 * 2**30  # bytes


def _draw() -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None] * [2, 1, 1]
    return (smooth + rng.integers(0, 30, smooth.shape)).astype(np.uint8)


def _pillow(path: Path) -> None:
    Image.fromarray(_draw()).save(path)


def _gif(path: Path) -> None:
    pages = [Image.fromarray(_draw()[:, :, i]) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def _pages(path: Path) -> None:
    tifffile.imwrite(path, _draw().transpose(2, 0, 1), photometric="minisblack", tile=(16, 16))


def _geotiff(path: Path) -> None:
    options = {"height": 48, "width": 64, "count": 3, "dtype": "uint8", "nodata": 7}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(1, 0, 5, 0, -1, 9)}
    with rasterio.open(path, "w", driver="GTiff", compress="deflate", **options, **place) as file:
        file.write(_draw().transpose(2, 0, 1))


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "PNG": ("png", _pillow),
    "JPEG": ("jpg", _pillow),
    "TIFF": ("tif", _pillow),
    "TIFF of pages": ("tif", _pages),
    "GeoTIFF": ("tif", _geotiff),
    "WebP": ("webp", _pillow),
    "GIF": ("gif", _gif),
    "AVIF": ("avif", _pillow),
    "JPEG 2000": ("jp2", _pillow),
    "BMP": ("bmp", _pillow),
    "NumPy": ("npy", lambda path: np.save(path, _draw())),
}


def damage(whole: bytes, rng: np.random.Generator) -> bytes:
    """Change up to four bytes, half of the time near the start, or cut the end off."""
    if rng.random() < 0.2:
        return whole[: rng.integers(len(whole))]
    changed = bytearray(whole)
    end = len(whole) if rng.integers(2) else min(len(whole), 300)
    for _ in range(rng.integers(1, 5)):
        changed[rng.integers(end)] = rng.integers(256)
    return bytes(changed)


def read(path: Path) -> str:
    """Read a file in all ways; return what came of it."""
    result = "pixels"
    try:
        read_image(path, 3, page=0)
    except (ValueError, FileNotFoundError) as error:
        if not str(error).startswith(str(path)):
            raise
        result = "error"
    if path.suffix == ".tif":
        try:
            with open_image(path, ReadOptions(windows=True)) as file:
                file.read(page=0)
        except (ValueError, FileNotFoundError) as error:
            if not str(error).startswith(str(path)):
                raise
    return result


def fuzz(name: str, count: int, seed: int, folder: Path) -> Counter[str]:
    """Damage a file of a format in `count` ways, and count the results."""
    suffix, write = FORMATS[name]
    source = folder / f"whole.{suffix}"
    write(source)
    whole, results = source.read_bytes(), Counter[str]()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        path = folder / f"{number}.{suffix}"
        path.write_bytes(damage(whole, rng))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(20 * SECONDS)  # on a busy machine
        results[read(path)] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        path.unlink()
    return results


def main(argv: list[str] | None = None) -> int:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="files of a format (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", choices=FORMATS, help="only this format, in this process")
    parser.add_argument("--folder", type=Path, help="where faulty files are kept")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp())
    if arguments.format:
        results = fuzz(arguments.format, arguments.count, arguments.seed, folder)
        print(f"{arguments.format}: " + ", ".join(f"{n} {one}" for one, n in results.items()))
        return 0
    failed = []
    for name in FORMATS:
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        options = ["--count", str(arguments.count), "--seed", str(arguments.seed)]
        command = [sys.executable, __file__, "--format", name, "--folder", str(place), *options]
        done = subprocess.run(  # noqa: S603 (our own command)
            command, capture_output=True, text=True, check=False
        )
        if done.returncode:
            failed.append(name)
            lines = done.stderr.strip().splitlines() or ["no output"]
            print(f"{name}: ended with {done.returncode}, files in {place}: {lines[-1]}")
        else:
            print(done.stdout.strip(), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
