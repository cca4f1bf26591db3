"""Download the Oxford-IIIT pets with torchvision, and list them in pairs.csv.

The data set lists trainval and test images. A tenth of each breed's trainval images becomes val,
chosen at random but always the same; the others become train. The test images are listed as test
and are not used in training. All images stay where the archives have them; pairs.csv names them
relative to the folder.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from preparation import Archive, folder_parser, prepare
from torchvision.datasets import OxfordIIITPet


def draw_validation(stems: Sequence[str]) -> set[str]:
    """Choose a tenth of each breed's images; the breed is the stem up to its last underscore."""
    breeds = defaultdict(list)
    for stem in sorted(stems):
        breeds[stem.rpartition("_")[0]].append(stem)
    rng = np.random.default_rng(0)
    return {
        stem
        for breed in breeds.values()
        for stem in rng.permutation(breed)[: round(len(breed) / 10)].tolist()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the folder and return the exit code."""
    root = folder_parser(__doc__, "data/oxford_pet").parse_args(argv).root

    def rows() -> Iterator[tuple[Path, Path, str]]:
        trainval, test = (OxfordIIITPet(root, split=split) for split in ("trainval", "test"))
        validation = draw_validation([image.stem for image in trainval._images])
        for image, mask in zip(trainval._images, trainval._segs, strict=True):
            yield image, mask, "val" if image.stem in validation else "train"
        for image, mask in zip(test._images, test._segs, strict=True):
            yield image, mask, "test"

    folder = root / "oxford-iiit-pet"  # torchvision's name for it
    archives = [
        Archive(path=folder / url.rpartition("/")[2], url=url, md5=md5)
        for url, md5 in OxfordIIITPet._RESOURCES
    ]
    return prepare(root, archives, rows, "configs/oxford_pet.yaml")


if __name__ == "__main__":
    sys.exit(main())
