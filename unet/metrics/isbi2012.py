"""Docstring to be written."""

from dataclasses import dataclass

import numpy as np

from unet.data.label_images import connected_components
from unet.metrics.instances import _counted, _overlap


@dataclass(frozen=True, kw_only=True)
class MembraneScores:
    """What ISBI 2012 measured in one image, then (the errors) and since (the scores).

    The challenge took the best of several thresholds of a probability; here the mask is given.

    Source: Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation
    algorithms for connectomics", Frontiers in Neuroanatomy 9:142, and the evaluation scripts of
    the challenge in Fiji's Trainable Segmentation.
    """

    pixel_error: float
    """See `pixel_error`."""
    warping_error: float
    """See `warping_error`, without a geometric constraint."""
    rand_error: float
    """See `rand_error`: over the whole segmentation, membranes as a segment."""
    foreground_rand_error: float
    """1 - `rand_score`, borders as they are: what the challenge ranked by as Rand error."""
    thinned_rand_score: float
    """`rand_score` with the prediction's borders thinned: V_Rand (thinned) of today's ranking."""
    thinned_info_score: float
    """`info_score` with the prediction's borders thinned: V_Info (thinned) of today's ranking."""


def membrane_scores(
    prediction: np.ndarray,
    target: np.ndarray,
    counted: np.ndarray | None = None,
    true_cells: np.ndarray | None = None,
) -> MembraneScores:
    """Compute the measures of ISBI 2012 from two masks, True inside cells, False on membranes.

    Args:
        prediction: mask.
        target: mask.
        counted: the pixels that are not ignored; what the masks hold on the others has no effect.
        true_cells: label image of the target, 0 on ignored pixels, for Rand and information scores;
            None for its connected parts. Pixel and warping errors are those of the masks.

    Raises:
        ValueError: if scipy is not installed.
    """
    if counted is not None:
        prediction, target = prediction & counted, target & counted
    cells = connected_components(prediction)
    if true_cells is None:
        true_cells = connected_components(target)
    # Only the prediction's borders: of the target's, however thick, no pixel counts.
    thinned = thin_borders(cells, counted)
    return MembraneScores(
        pixel_error=pixel_error(prediction, target, counted),
        warping_error=warping_error(prediction, target, counted),
        rand_error=rand_error(cells, true_cells, counted),
        foreground_rand_error=1 - rand_score(cells, true_cells, counted),
        thinned_rand_score=rand_score(thinned, true_cells, counted),
        thinned_info_score=info_score(thinned, true_cells, counted),
    )


def pixel_error(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Compute the share of the counted pixels that differ; NaN if there are none.

    ISBI 2012 named two pixel errors: this one, and what its scripts compute, 1 - the highest F1 of
    the cells' pixels over all thresholds of a probability, see `curves.Curve`.
    """
    prediction, target = _counted(prediction, target, counted)
    return float((prediction != target).mean()) if target.size else float("nan")


def thin_borders(labels: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Let all objects grow into the 0 between them until thin borders are left.

    A watershed by flooding: all grow at the same pace, to the pixels above, below, left and right;
    a pixel that would touch two objects becomes border, 0, as does one that only borders lead to.
    In each step first the pixels whose row and column have an even sum grow, then the others, so
    that objects which were apart never come to touch.

    Args:
        labels: label image, 0 on ignored pixels.
        counted: ignored pixels stay 0, and nothing grows through them.

    Source: Soille and Vincent 1990, "Determining watersheds in digital pictures via flooding
    simulations", which the evaluation of ISBI 2012 uses (there the order is that of a queue).
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
            beside = flat[now[:, None] + around]
            smallest, largest = beside.min(1), np.where(beside < border, beside, 0).max(1)
            # Without an object beside, the smallest is a border.
            flat[now] = np.where(smallest == largest, smallest, border)
        beside = (front[:, None] + around).ravel()
        front = _once(beside[flat[beside] == open_pixel])
    thinned = grown[1:-1, 1:-1]
    thinned[thinned >= border] = 0
    return thinned


def rand_score(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Compute the foreground-restricted Rand F-score, V_Rand; 1 is best.

    With p_ij the share of pixels in segment i of the prediction and j of the target, s_i and t_j
    its sums: sum p_ij^2 / (0.5 sum s_i^2 + 0.5 sum t_j^2). Only the target's foreground counts;
    each pixel there that the prediction leaves 0 is a segment by itself. NaN without foreground.

    Source: Arganda-Carreras et al. 2015, V_Rand with alpha = 0.5.
    """
    shares = _foreground_shares(prediction, target, counted)
    common, found, true = (float((share**2).sum()) for share in shares)
    return 2 * common / (found + true) if found else float("nan")


def info_score(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Compute the foreground-restricted information theoretic F-score, V_Info; 1 is best.

    The mutual information of the two segmentations by the mean of their entropies, on the pixels
    and segments of `rand_score`. NaN where both entropies are 0: a single segment in each.

    Source: Arganda-Carreras et al. 2015, V_Info with alpha = 0.5.
    """
    joint, prediction_entropy, target_entropy = (
        float(-(p * np.log(p)).sum()) for p in _foreground_shares(prediction, target, counted)
    )
    both = prediction_entropy + target_entropy
    return 2 * (both - joint) / both if both else float("nan")


def rand_error(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Compute 1 - the F-score of pairs of pixels, over the whole segmentation; 0 is best.

    Of the pairs of different pixels that are in one segment in the prediction and of those in the
    target, what share are so in both? What is 0 is a segment, too. NaN without any such pair.

    Source: Rand 1971, "Objective criteria for the evaluation of clustering methods"; precision and
    recall of pairs as in Arganda-Carreras et al. 2015.
    """
    overlap = _overlap(*_counted(prediction, target, counted))
    common, found, true = (
        (n.astype(float) * (n - 1)).sum() for n in (overlap.common, overlap.found, overlap.true)
    )
    return float(1 - 2 * common / (found + true)) if found + true else float("nan")


def warping_error(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None = None
) -> float:
    """Compute the share of counted pixels by which the prediction differs from a warped target.

    0 where prediction and target differ by nothing but where their borders run: what is left are
    splits, mergers, objects and holes. See `warp`. NaN where no pixel counts. (The challenge's
    board counted the groups of pixels left that split or merge objects, which gives less.)

    Args:
        prediction: mask.
        target: mask.
        counted: ignored pixels stay as they are in the target.
    """
    return pixel_error(prediction, warp(target, prediction, counted), counted)


def warp(mask: np.ndarray, towards: np.ndarray, movable: np.ndarray | None = None) -> np.ndarray:
    """Warp a mask towards another one without a change of its topology.

    Pixels that differ are flipped as long as one is simple: flipping it neither joins, splits,
    makes nor removes an object (4-connected) or a hole (8-connected). Outside of the image is
    False. As no others are flipped, a thin border follows to where it touches its old place, and
    no farther. A greedy search: each pass flips the pixels of even row and column, then those of
    odd column, of odd row, and of both; two pixels of one kind are no neighbours.

    Args:
        mask: bool (H, W).
        towards: bool (H, W).
        movable: bool (H, W), the pixels that may be flipped; None for all.

    Returns:
        bool (H, W).

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
    places = np.arange(flat.size)
    kind = (places // width + 1) % 2 * 2 + (places % width + 1) % 2
    queues = [np.flatnonzero(open_pixel & (kind == one)) for one in range(4)]
    while any(queue.size for queue in queues):
        for one in range(4):
            pixels = _once(queues[one])
            flipped = pixels[_is_simple(flat[pixels[:, None] + around])]
            flat[flipped] ^= True
            open_pixel[flipped] = False
            queues[one] = flipped[:0]
            # Whether a pixel is simple changes only where a neighbour does: one beside differs from
            # it in the first bit of its kind, one above or below in the second.
            for bits, ways in ((1, [0, 4]), (2, [2, 6]), (3, [1, 3, 5, 7])):
                near = (flipped[:, None] + around[ways]).ravel()
                queues[one ^ bits] = np.concatenate([queues[one ^ bits], near[open_pixel[near]]])
    return warped[1:-1, 1:-1]


def _once(places: np.ndarray) -> np.ndarray:
    """Leave each place once, in order; `np.unique` would hash them, which takes several times."""
    places = np.sort(places)
    first = np.ones(places.size, bool)
    first[1:] = places[1:] != places[:-1]
    return places[first]


def _is_simple(ring: np.ndarray) -> np.ndarray:
    """Whether pixels are simple, from their 8 neighbours (N, 8), in a circle from one beside."""
    beside, corner, next_beside = ring[:, ::2], ring[:, 1::2], ring[:, [2, 4, 6, 0]]
    connectivity_number = (beside & ~(corner & next_beside)).sum(1)
    simple: np.ndarray = connectivity_number == 1
    return simple


def _foreground_shares(
    prediction: np.ndarray, target: np.ndarray, counted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the target's foreground: of common parts, of segments found, of true ones."""
    prediction, target = _counted(prediction, target, counted)
    segments = prediction[target > 0].astype(np.int64)
    alone = segments == 0
    segments[alone] = -1 - np.arange(alone.sum())  # a segment each
    overlap = _overlap(segments, target[target > 0])
    pixels = max(1, segments.size)
    return overlap.common / pixels, overlap.found / pixels, overlap.true / pixels
