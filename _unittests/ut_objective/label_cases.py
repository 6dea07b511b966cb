"""Cases of losses of class labels with their options: loss, data, shapes, and the formula in NumPy.

``test_base.py`` does with them what it does with all losses.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, softmax

from onnxcustom.objective import FocalLearningLoss, NLLLearningLoss, SoftmaxCrossEntropyLearningLoss

__all__ = ["LABEL_CASES", "some_labels", "weighed"]

CLASS_SHAPES = [(6, 3), (3, 3, 4), (2, 3, 2, 2)]
WEIGHTS = [0.5, 2.0, 0.25]


def some_labels(rng, shape, ignored=-100):
    """Labels, of which some do not count, and scores."""
    y = rng.integers(0, shape[1], size=(shape[0], *shape[2:]))
    y[rng.uniform(size=y.shape) < 0.3] = ignored
    y[0] = ignored
    return y, rng.normal(size=shape) * 3


def some_pixels(rng, shape):
    return some_labels(rng, shape, 255)


def some_bits(rng, shape):
    y = rng.integers(0, 2, size=shape).astype(float)
    y[0] = -100
    return y, rng.normal(size=shape) * 3


def some_of_probabilities(rng, shape):
    y, z = some_labels(rng, shape)
    return y, softmax(z, axis=1) * 0.9 + 0.03


def some_of_logarithms(rng, shape):
    y, z = some_labels(rng, shape)
    return y, log_softmax(z, axis=1)


def soft_labels(rng, shape):
    y = rng.dirichlet(np.ones(shape[1]), size=(shape[0], *shape[2:])).swapaxes(1, -1)
    return y, rng.normal(size=shape)


def weighed(link, smoothing=0.0, weight=None, ignored=-100):
    """PyTorch's CrossEntropyLoss, one number for each label."""

    def formula(y, z):
        log_p, classes = link(z), z.shape[1]
        w = np.ones(classes) if weight is None else np.asarray(weight)
        safe = np.where(y == ignored, 0, y)
        picked = np.take_along_axis(log_p, np.expand_dims(safe, 1), axis=1)[:, 0]
        spread = np.moveaxis(np.moveaxis(log_p, 1, -1) * w, -1, 1).sum(axis=1)
        losses = -(1 - smoothing) * w[safe] * picked - smoothing / classes * spread
        return np.where(y == ignored, 0, losses)

    return formula


def scores(z):
    return log_softmax(z, axis=1)


def as_it_is(z):
    return z


def of_distributions(smoothing, weight):
    def formula(q, z):
        share = q * (1 - smoothing) + smoothing / z.shape[1]
        share = np.moveaxis(np.moveaxis(share, 1, -1) * np.asarray(weight), -1, 1)
        return -share * scores(z)

    return formula


def focal(y, z, gamma=2):
    losses = weighed(scores)(y, z)
    return (1 - np.exp(-losses)) ** gamma * losses


def binary_focal(y, z, gamma=2):
    p = np.where(y == 1, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    return np.where(y == -100, 0, -((1 - p) ** gamma) * np.log(p))


Entropy = SoftmaxCrossEntropyLearningLoss
LABEL_CASES = [
    (Entropy(), some_labels, CLASS_SHAPES, weighed(scores)),
    (Entropy(ignore_index=255), some_pixels, CLASS_SHAPES[1:2], weighed(scores, ignored=255)),
    (Entropy(label_smoothing=0.2), some_labels, CLASS_SHAPES[:2], weighed(scores, 0.2)),
    (Entropy(class_weight=WEIGHTS), some_labels, CLASS_SHAPES[:2], weighed(scores, 0, WEIGHTS)),
    (
        Entropy(label_smoothing=0.3, class_weight=WEIGHTS),
        some_labels,
        CLASS_SHAPES,
        weighed(scores, 0.3, WEIGHTS),
    ),
    (
        Entropy(False, label_smoothing=0.3, class_weight=WEIGHTS),
        some_of_probabilities,
        CLASS_SHAPES[1:2],
        weighed(np.log, 0.3, WEIGHTS),
    ),
    (
        Entropy(False, class_weight=WEIGHTS),
        some_of_probabilities,
        CLASS_SHAPES[:1],
        weighed(np.log, 0, WEIGHTS),
    ),
    (
        Entropy(label_smoothing=0.1, class_weight=WEIGHTS),
        soft_labels,
        CLASS_SHAPES[1:2],
        of_distributions(0.1, WEIGHTS),
    ),
    (NLLLearningLoss(), some_of_logarithms, CLASS_SHAPES[:2], weighed(as_it_is)),
    (
        NLLLearningLoss(class_weight=WEIGHTS),
        some_of_logarithms,
        CLASS_SHAPES[1:2],
        weighed(as_it_is, 0, WEIGHTS),
    ),
    (
        NLLLearningLoss(label_smoothing=0.3, class_weight=WEIGHTS),
        some_of_logarithms,
        CLASS_SHAPES[:1],
        weighed(as_it_is, 0.3, WEIGHTS),
    ),
    (FocalLearningLoss(), some_labels, CLASS_SHAPES[:2], focal),
    (FocalLearningLoss(link="sigmoid"), some_bits, [(4, 3)], binary_focal),
]
