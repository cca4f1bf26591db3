"""The measures of the ISBI 2012 challenge, for objects that thin borders separate.

Masks are bool (H, W), True inside objects. Label images are (H, W) integers, a number above 0 for
each object, 0 for borders. Ignored pixels are in no object, and do not connect objects.

Source: Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms
for connectomics", Frontiers in Neuroanatomy 9:142, and the evaluation scripts of the challenge in
Fiji's Trainable Segmentation.
"""

import numpy as np

from unet.data.label_images import connected_components
from unet.metrics.instances import find_overlaps
from unet.runtime.optional import import_extra

Counted = np.ndarray | None
"""Bool (H, W), False on ignored pixels; None counts all."""


def membrane_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    counted: Counted = None,
    true_objects: np.ndarray | None = None,
) -> dict[str, float]:
    """Compute the errors that ISBI 2012 ranked by, and the scores (thinned) of its later ranking.

    The challenge took the best of several thresholds of a probability. Here the masks are given.
    `true_objects` is a label image, 0 on ignored pixels; None stands for the target's connected
    components. Pixel and warping error are those of the masks in any case.
    """
    if counted is not None:
        prediction, target = prediction & counted, target & counted
    objects = connected_components(prediction)
    true_objects = connected_components(target) if true_objects is None else true_objects
    # Only the prediction's borders: no pixel of the target's counts, however thick they are.
    thinned = thin_borders(objects, counted)
    return {
        "pixel_error": pixel_error(prediction, target, counted),
        "warping_error": warping_error(prediction, target, counted),
        "rand_error": rand_error(objects, true_objects, counted),
        # The challenge's Rand error.
        "foreground_rand_error": 1 - rand_score(objects, true_objects, counted),
        "thinned_rand_score": rand_score(thinned, true_objects, counted),
        "thinned_info_score": info_score(thinned, true_objects, counted),
    }


def pixel_error(prediction: np.ndarray, target: np.ndarray, counted: Counted = None) -> float:
    """Compute the fraction of the counted pixels that differ; NaN if there are none.

    The scripts of ISBI 2012 compute another one: 1 - the highest F1 of a `precision_recall.Curve`.
    """
    prediction, target = _counted_pixels(prediction, target, counted)
    return float((prediction != target).mean()) if target.size else float("nan")


def thin_borders(labels: np.ndarray, counted: Counted = None) -> np.ndarray:
    """Grow all objects of a label image, 0 on ignored pixels, until borders between them are thin.

    A watershed by flooding: all objects grow at the same pace over pixel edges. A pixel next to two
    objects becomes border, as does one next to borders only. In each step, pixels whose row and
    column have an even sum come first, so that separate objects never touch. scikit-image's
    watershed grows in another order: a fifth of the pixels differ on random label images.

    Source: Soille and Vincent 1990, "Determining watersheds in digital pictures via flooding
    simulations", which the evaluation of ISBI 2012 uses (there in the order of a queue).
    """
    border = labels.max(initial=0).astype(np.int64) + 1
    open_pixel, edge = border + 1, border + 2
    grown = np.pad(labels.astype(np.int64), 1, constant_values=edge)
    grown[grown == 0] = open_pixel
    if counted is not None:
        grown[1:-1, 1:-1][~counted] = edge
    flat, width = grown.ravel(), grown.shape[1]
    around = np.array([-width, -1, 1, width])
    front = np.flatnonzero(flat == open_pixel)
    front = front[(flat[front[:, None] + around] < border).any(1)]
    while front.size:
        odd = (front // width + front % width) % 2 == 1
        for now in (front[~odd], front[odd]):
            neighbours = flat[now[:, None] + around]
            smallest = neighbours.min(1)
            largest = np.where(neighbours < border, neighbours, 0).max(1)
            # If no neighbour is an object, the smallest is a border.
            flat[now] = np.where(smallest == largest, smallest, border)
        neighbours = (front[:, None] + around).ravel()
        front = _unique(neighbours[flat[neighbours] == open_pixel])
    thinned = grown[1:-1, 1:-1]
    thinned[thinned >= border] = 0
    return thinned


def rand_score(prediction: np.ndarray, target: np.ndarray, counted: Counted = None) -> float:
    """Compute the foreground-restricted Rand F-score V_Rand of label images; 1 is best.

    With p_ij the fraction of pixels in segment i of the prediction and j of the target, s_i and t_j
    its sums: sum p_ij^2 / (0.5 sum s_i^2 + 0.5 sum t_j^2). Only the target's foreground counts.
    Each pixel there that is 0 in the prediction is a segment by itself. NaN without foreground.
    """
    fractions = _foreground_fractions(prediction, target, counted)
    common, found, true = (float((p**2).sum()) for p in fractions)
    return 2 * common / (found + true) if found else float("nan")


def info_score(prediction: np.ndarray, target: np.ndarray, counted: Counted = None) -> float:
    """Compute the foreground-restricted information F-score V_Info of label images; 1 is best.

    The mutual information of the two segmentations divided by the mean of their entropies, with
    the pixels and segments of `rand_score`. NaN where both entropies are 0: one segment each.
    """
    joint, prediction_entropy, target_entropy = (
        float(-(p * np.log(p)).sum()) for p in _foreground_fractions(prediction, target, counted)
    )
    both = prediction_entropy + target_entropy
    return 2 * (both - joint) / both if both else float("nan")


def rand_error(prediction: np.ndarray, target: np.ndarray, counted: Counted = None) -> float:
    """Compute scikit-image's adapted Rand error of label images, 0 as a segment too; 0 is best.

    1 - the F-score of the pairs of different pixels that are in one segment. NaN without any.
    """
    metrics = import_extra("skimage.metrics", "the Rand error")
    overlaps = find_overlaps(*_counted_pixels(prediction, target, counted))
    # A table of our own: theirs has a row for every number up to the highest label.
    table = import_extra("scipy.sparse", "the Rand error").csr_array(
        (overlaps.common, (overlaps.j, overlaps.i)),
        shape=(overlaps.true_sizes.size, overlaps.sizes.size),
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        return float(metrics.adapted_rand_error(table=table)[0])


def warping_error(prediction: np.ndarray, target: np.ndarray, counted: Counted = None) -> float:
    """Compute the pixel error of a mask and the target, warped towards it; see `warp`.

    Where borders run does not matter; splits, mergers, objects and holes do. The challenge's board
    counted groups of pixels that split or merge instead, which is less. NaN where no pixel counts.
    """
    return pixel_error(prediction, warp(target, prediction, counted), counted)


def warp(mask: np.ndarray, towards: np.ndarray, movable: Counted = None) -> np.ndarray:
    """Warp a mask towards another one without a change of its topology.

    Pixels that differ are flipped while any is simple: its flip neither joins, splits, makes nor
    removes an object (4-connected) or a hole (8-connected). Only those, so a thin border moves only
    where it still touches its old place. Outside of the image is False. Each pass of the greedy
    search flips pixels of even row and column, then of odd column, of odd row, and of both, so that
    no two neighbours flip at once. Only `movable` pixels (H, W) are flipped; None means all.

    Source: Jain et al. 2010, "Boundary learning by optimization with topological constraints",
    CVPR; simple points by the connectivity number of Yokoi, Toriwaki and Fukumura 1975, "An
    analysis of topological properties of digitized binary pictures using local features".
    """
    differs = mask != towards
    if movable is not None:
        differs &= movable
    warped, open_pixel = np.pad(mask, 1), np.pad(differs, 1).ravel()
    flat, width = warped.ravel(), warped.shape[1]
    around = np.array([1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1])
    pixels = np.arange(flat.size)
    parity = (pixels // width + 1) % 2 * 2 + (pixels % width + 1) % 2
    queues = [np.flatnonzero(open_pixel & (parity == k)) for k in range(4)]
    while any(queue.size for queue in queues):
        for k in range(4):
            pixels = _unique(queues[k])
            flipped = pixels[_is_simple(flat[pixels[:, None] + around])]
            flat[flipped] ^= True
            open_pixel[flipped] = False
            queues[k] = flipped[:0]
            # Whether a pixel is simple changes only with a neighbour: one to the left or right
            # differs in the first bit of its parity, one above or below in the second.
            for bits, ways in ((1, [0, 4]), (2, [2, 6]), (3, [1, 3, 5, 7])):
                near = (flipped[:, None] + around[ways]).ravel()
                queues[k ^ bits] = np.concatenate([queues[k ^ bits], near[open_pixel[near]]])
    return warped[1:-1, 1:-1]


def _is_simple(ring: np.ndarray) -> np.ndarray:
    """Whether pixels are simple, from their 8 neighbours (N, 8) in a circle from the right one."""
    edge, corner, next_edge = ring[:, ::2], ring[:, 1::2], ring[:, [2, 4, 6, 0]]
    connectivity_number = (edge & ~(corner & next_edge)).sum(1)
    return np.asarray(connectivity_number == 1)


def _unique(values: np.ndarray) -> np.ndarray:
    """The sorted unique values; `np.unique` hashes, which takes several times as long."""
    values = np.sort(values)
    is_first = np.diff(values, prepend=-1) > 0  # indices are not negative
    return values[is_first]


def _counted_pixels(
    prediction: np.ndarray, target: np.ndarray, counted: Counted
) -> tuple[np.ndarray, np.ndarray]:
    return (prediction, target) if counted is None else (prediction[counted], target[counted])


def _foreground_fractions(
    prediction: np.ndarray, target: np.ndarray, counted: Counted
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fractions of the target's foreground: of the overlaps, of segments found, of true ones."""
    prediction, target = _counted_pixels(prediction, target, counted)
    segments = prediction[target > 0].astype(np.int64)
    zero = segments == 0
    segments[zero] = -1 - np.arange(zero.sum())  # a segment each
    overlaps = find_overlaps(segments, target[target > 0])
    pixels = max(1, segments.size)
    return overlaps.common / pixels, overlaps.sizes / pixels, overlaps.true_sizes / pixels
