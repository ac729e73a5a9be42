"""The options that PyTorch has, against PyTorch, in float64 and for logits where it loses no digits."""

import numpy as np
import pytest
from cases import generator

import stableloss as sl

torch = pytest.importorskip("torch", exc_type=ImportError)
functional = torch.nn.functional

REDUCTIONS = ["mean", "sum", "none"]
# rows, then the spatial axes behind the class axis, which is axis 1 as in PyTorch
SHAPES = [(7,), (3, 4), (2, 4, 3), (2, 2, 3, 2)]
CLASSES = 5
# PyTorch's own float64 arithmetic: a few ulp of the largest logit and of the sum over the rows
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def tensor(array):
    return torch.tensor(np.asarray(array))


def inputs(*key, shape):
    rng = generator("torch", *key, shape)
    logits = rng.normal(scale=2, size=(shape[0], CLASSES, *shape[1:]))
    return logits, rng.integers(0, CLASSES, shape), rng


def compare(loss, theirs, logits, targets, **at_call):
    """Value and gradient; `theirs` computes PyTorch's loss of a tensor of logits."""
    z = tensor(logits).requires_grad_()
    expected = theirs(z)
    expected.sum().backward()
    value, grad = loss.value_and_grad(logits, targets, **at_call)
    np.testing.assert_allclose(value, expected.detach().numpy(), **CLOSE)
    np.testing.assert_allclose(grad, z.grad.numpy(), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("ignore_index", [None, -100, 2, 255])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_of_class_indices(shape, reduction, weighted, ignore_index, smoothing):
    logits, targets, rng = inputs(weighted, smoothing, shape=shape)
    weight = rng.uniform(0.25, 4, CLASSES) if weighted else None
    ours, theirs = {}, {}
    if ignore_index is not None:
        ours = theirs = {"ignore_index": ignore_index}
        targets.flat[[0, -1]] = ignore_index
    if weighted:
        theirs = {**theirs, "weight": tensor(weight)}
    loss = sl.SoftmaxCE(reduction=reduction, class_weight=weight, label_smoothing=smoothing, axis=1, **ours)
    compare(
        loss,
        lambda z: functional.cross_entropy(
            z, tensor(targets), reduction=reduction, label_smoothing=smoothing, **theirs
        ),
        logits,
        targets,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weight"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_probabilities(shape, reduction, weighted, smoothing):
    logits, _, rng = inputs("soft", weighted, smoothing, shape=shape)
    soft = np.moveaxis(rng.dirichlet(np.ones(CLASSES), shape), -1, 1)
    weight = rng.uniform(0.25, 4, CLASSES) if weighted else None
    theirs = {"weight": tensor(weight)} if weighted else {}
    compare(
        sl.SoftmaxCE(reduction=reduction, class_weight=weight, label_smoothing=smoothing, axis=1),
        lambda z: functional.cross_entropy(
            z, tensor(soft), reduction=reduction, label_smoothing=smoothing, **theirs
        ),
        logits,
        soft,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos_weight", [None, "scalar", "per-output"])
@pytest.mark.parametrize("weight", [None, "per-output", "per-row", "per-element"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_binary_cross_entropy(reduction, pos_weight, weight, soft):
    rng = generator("torch", reduction, pos_weight, weight, soft)
    logits = rng.normal(scale=2, size=(7, CLASSES))
    targets = rng.uniform(size=logits.shape) if soft else rng.integers(0, 2, logits.shape).astype(float)
    positive = {None: None, "scalar": 3.0, "per-output": rng.uniform(0.25, 4, CLASSES)}[pos_weight]
    weights = {
        None: None,
        "per-output": rng.uniform(0.25, 4, CLASSES),
        "per-row": rng.uniform(0.25, 4, 7),
        "per-element": rng.uniform(0.25, 4, logits.shape),
    }[weight]
    options = {"class_weight": weights} if weight == "per-output" else {}
    at_call = {} if weight in (None, "per-output") else {"sample_weight": weights}
    theirs = {} if positive is None else {"pos_weight": tensor(positive)}
    if weights is not None:
        theirs["weight"] = tensor(weights[:, None] if weight == "per-row" else weights)
    compare(
        sl.SigmoidBCE(reduction=reduction, pos_weight=positive, **options),
        lambda z: functional.binary_cross_entropy_with_logits(
            z, tensor(targets), reduction=reduction, **theirs
        ),
        logits,
        targets,
        **at_call,
    )


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weight": True}], ids=str)
def test_second_order(options):
    """Hessian-vector product and diagonal, and the gradient by the targets, against autograd."""
    logits, _, rng = inputs("second", shape=(6,))
    soft, v = rng.dirichlet(np.ones(CLASSES), 6), rng.normal(size=logits.shape)
    ours, theirs = dict(options), dict(options)
    if "class_weight" in options:
        ours["class_weight"] = rng.uniform(0.25, 4, CLASSES)
        theirs = {"weight": tensor(ours["class_weight"])}

    loss, z, t = sl.SoftmaxCE(reduction="sum", **ours), tensor(logits), tensor(soft)

    def cross_entropy(z):
        return functional.cross_entropy(z, t, reduction="sum", **theirs)

    product = torch.autograd.functional.hvp(cross_entropy, z, tensor(v))[1].numpy()
    np.testing.assert_allclose(loss.hessian_vector_product(logits, soft, v), product, **CLOSE)
    hessian = torch.autograd.functional.hessian(cross_entropy, z).numpy()
    size = logits.size
    diagonal = hessian.reshape(size, size).diagonal().reshape(logits.shape)
    np.testing.assert_allclose(loss.grad_and_hess(logits, soft)[1], diagonal, **CLOSE)
    t.requires_grad_()
    cross_entropy(z).backward()
    np.testing.assert_allclose(loss.target_grad(logits, soft), t.grad.numpy(), **CLOSE)


@pytest.mark.parametrize("cls", [sl.SoftmaxMSE, sl.SigmoidMSE])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mse_of_activations(cls, reduction):
    """With this package's factor of 1/2, and the sum over the classes of a softmax."""
    logits, _, rng = inputs("mse", shape=(6,))
    soft = rng.dirichlet(np.ones(CLASSES), 6)

    def theirs(z):
        if cls is sl.SigmoidMSE:
            return functional.mse_loss(torch.sigmoid(z), tensor(soft), reduction=reduction) / 2
        squares = functional.mse_loss(torch.softmax(z, 1), tensor(soft), reduction="none").sum(1) / 2
        return {"mean": squares.mean(), "sum": squares.sum(), "none": squares}[reduction]

    compare(cls(reduction=reduction), theirs, logits, soft)
