"""What the tests of the two boosting adapters share: losses, weights and an imbalanced set."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

import stableloss as sl

LOSSES = [
    sl.SoftmaxCE(label_smoothing=0.1, class_weight=np.arange(1, 11)),
    sl.SoftmaxCE(focal_gamma=2.0, class_weight=np.arange(1, 11), reduction="sum"),
    sl.SigmoidBCE(label_smoothing=0.1, pos_weight=5.0),
    sl.SigmoidBCE(focal_gamma=2.0, focal_alpha=0.75),
    sl.SoftmaxMSE(),
]


def weights(n):
    return np.random.default_rng(0).uniform(0.1, 3, n)


def rows_of(loss):
    """Margins, labels and weights for the loss, whose extremes are for the caller to put in."""
    softmax = type(loss).__name__.startswith("Softmax")
    rng = np.random.default_rng(0)
    margins = rng.normal(scale=4, size=(50, 10) if softmax else 50)
    labels = rng.integers(10 if softmax else 2, size=50).astype(np.float32)
    return margins, labels, weights(50).astype(np.float32)


def plain(loss):
    """The loss without what the libraries' conventions leave out of the Hessian."""
    kept = ("class_weight", "pos_weight", "label_smoothing", "focal_alpha")
    return type(loss)(**{name: getattr(loss, name) for name in kept if hasattr(loss, name)})


def rare_digit():
    """Is it an 8? With 40 of them among 1623 other digits."""
    x, y = load_digits(return_X_y=True)
    eights = np.random.default_rng(0).choice(np.flatnonzero(y == 8), 40, replace=False)
    keep = np.r_[np.flatnonzero(y != 8), eights]
    return x[keep], (y[keep] == 8).astype(int)


def rare_digit_scores(predictions):
    """Mean F1 score of cross-entropy and of a focal loss; `predictions(loss, x, y, x_test)` trains."""
    x, y = rare_digit()
    for loss in (sl.sigmoid_bce, sl.SigmoidBCE(focal_gamma=2.0, focal_alpha=0.75)):
        folds = StratifiedKFold(4, shuffle=True, random_state=0).split(x, y)
        yield np.mean(
            [f1_score(y[test], predictions(loss, x[train], y[train], x[test])) for train, test in folds]
        )
