"""The losses as functions that PyTorch differentiates, on tensors that share their memory with numpy."""

import copy
import pickle
import warnings
from functools import partial

import numpy as np
import oracle
import pytest
from cases import assert_same_bits
from real_data import batches, digits

import stableloss as sl

torch = pytest.importorskip("torch")
from torch.autograd import forward_ad  # noqa: E402
from torch.autograd.functional import hvp, vhp  # noqa: E402
from torch.nn import functional  # noqa: E402

from stableloss.adapters import torch as adapter  # noqa: E402

# PyTorch says it of itself where forward mode is first used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

STEMS = ("sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse")
REDUCTIONS = ("mean", "sum", "batchmean", "none")
CLASS_WEIGHT = [1.0, 2.0, 0.5, 3.0]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def _one_thread():
    """PyTorch's threads wait by spinning: on a shared machine small batches take a minute with them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(dtype=torch.float64, scale=2.0):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(scale=scale, size=(6, 4)), dtype=dtype, requires_grad=True)
    targets = torch.eye(4, dtype=dtype)[torch.from_numpy(rng.integers(0, 4, 6))]
    return logits, targets, torch.from_numpy(rng.uniform(0.5, 2, 6))


class Inputs:
    """Few numbers, of all arguments that have derivatives, for what evaluates many times."""

    def __init__(self, n=3, k=4, seed=0):
        rng = np.random.default_rng(seed)
        self.logits = self.leaf(rng.normal(scale=1.5, size=(n, k)))
        self.targets = self.leaf(rng.dirichlet(np.ones(k), n))
        self.indices = torch.tensor([0, 3, 1, -100, 2][:n])
        self.weight = self.leaf(rng.uniform(0.5, 2, n))
        self.weights = self.leaf(rng.uniform(0.5, 2, (n, k)))
        self.denominator = self.leaf(2.5)
        self.mask = torch.arange(n) != 1

    @staticmethod
    def leaf(values):
        return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def assert_derivatives(function, *inputs):
    """First and second derivatives by all inputs, in reverse, forward and mixed mode, against differences."""
    check = partial(torch.autograd.gradcheck, function, inputs, fast_mode=True, check_forward_ad=True)
    assert check()
    assert check(check_batched_grad=True, check_batched_forward_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=True)


# ---- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("stem", STEMS)
def test_derivatives(stem, reduction):
    x = Inputs()
    loss = adapter.differentiable(type(getattr(sl, stem))(reduction=reduction))
    assert_derivatives(loss, x.logits, x.targets)
    assert_derivatives(
        lambda z, t, w: loss(z, t, sample_weight=w, mask=x.mask), x.logits, x.targets, x.weight
    )
    if stem.startswith("softmax"):
        assert_derivatives(lambda z, w: loss(z, x.indices, sample_weight=w), x.logits, x.weight)
    else:
        assert_derivatives(lambda z, t, w: loss(z, t, sample_weight=w), x.logits, x.targets, x.weights)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("stem", STEMS)
def test_derivatives_by_the_denominator(stem, reduction):
    x = Inputs()
    loss = adapter.differentiable(type(getattr(sl, stem))(reduction=reduction))
    arguments = x.logits, x.targets, x.denominator
    assert_derivatives(lambda z, t, d: loss(z, t, denominator=d), *arguments)
    assert_derivatives(
        lambda z, t, d, w: loss(z, t, sample_weight=w, denominator=d, mask=x.mask), *arguments, x.weight
    )


BOTH = [
    {"label_smoothing": 0.1},
    {"class_weight": CLASS_WEIGHT},
    {"focal_gamma": 2.0},
    {"focal_gamma": 0.5},
    {"logit_scale": 1.7},
    {"softcap": 2.0},
    {"logit_clip": 50.0},
    {
        "label_smoothing": 0.2,
        "class_weight": CLASS_WEIGHT,
        "focal_gamma": 1.5,
        "logit_scale": 0.7,
        "softcap": 3.0,
    },
]
SOFTMAX = [
    {"z_loss": 0.1},
    {"ignore_index": 3},
    {"ignore_index": 3, "class_weight": CLASS_WEIGHT, "label_smoothing": 0.1, "z_loss": 0.1},
]
SIGMOID = [
    {"pos_weight": 2.0},
    {"pos_weight": CLASS_WEIGHT},
    {"focal_gamma": 2.0, "focal_alpha": 0.25, "pos_weight": CLASS_WEIGHT, "class_weight": CLASS_WEIGHT},
]


@pytest.mark.parametrize("options", BOTH + SOFTMAX, ids=str)
def test_derivatives_of_softmax_ce_with_options(options):
    x = Inputs()
    loss = adapter.differentiable(sl.SoftmaxCE(**options))
    assert_derivatives(
        lambda z, t, w: loss(z, t, sample_weight=w, mask=x.mask), x.logits, x.targets, x.weight
    )
    assert_derivatives(lambda z, w: loss(z, x.indices, sample_weight=w), x.logits, x.weight)


@pytest.mark.parametrize("options", BOTH + SIGMOID, ids=str)
def test_derivatives_of_sigmoid_bce_with_options(options):
    x = Inputs()
    loss = adapter.differentiable(sl.SigmoidBCE(**options))
    assert_derivatives(
        lambda z, t, w: loss(z, t, sample_weight=w, mask=x.mask), x.logits, x.targets, x.weights[:, 0]
    )


@pytest.mark.parametrize("stem", ["softmax_ce", "softmax_mse"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_derivatives_with_any_class_axis(stem, axis):
    rng = np.random.default_rng(0)
    logits = Inputs.leaf(rng.normal(size=(2, 3, 2)))
    targets = torch.softmax(torch.from_numpy(rng.normal(size=(2, 3, 2))), axis).requires_grad_()
    weight = Inputs.leaf(rng.uniform(0.5, 2, np.delete([2, 3, 2], axis)))
    loss = adapter.differentiable(type(getattr(sl, stem))(axis=axis, reduction="none"))
    assert loss(logits, targets).shape == weight.shape
    assert_derivatives(lambda z, t, w: loss(z, t, sample_weight=w), logits, targets, weight)


def test_derivatives_of_a_saturated_focal_loss():
    """In the mixed derivative ``(1 - p)**(gamma - 1)`` is infinite, and its product with log(p) is not."""
    logits = torch.tensor([[800.0, 0.0, -INF]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64, requires_grad=True)
    loss = adapter.differentiable(sl.SoftmaxCE(focal_gamma=0.5))
    (slope,) = torch.autograd.grad(loss(logits.detach(), targets), targets, create_graph=True)
    torch.testing.assert_close(slope, slope.new_tensor([[0, 800, INF]]))
    (by_targets,) = torch.autograd.grad(loss(logits, targets), logits, create_graph=True)
    (mixed,) = torch.autograd.grad(by_targets[0, 1], targets)
    # d/dt of t_1 (p_1 - 1) (1 - p_1)**0.5 ..., p_1 = 0
    torch.testing.assert_close(mixed, mixed.new_tensor([[0, -1, 0]]))


def test_logit_clip_lets_the_gradient_through():
    """All derivatives are those at the clamped logits, beyond the bounds too."""
    x = Inputs()
    clipped, plain = (adapter.differentiable(sl.SoftmaxMSE(logit_clip=c)) for c in (1.0, None))
    for arguments in ((x.logits,), (x.targets,), (x.logits, x.targets)):
        for at, loss in ((x.logits, clipped), (x.logits.detach().clamp(-1, 1).requires_grad_(), plain)):
            inputs = [at if argument is x.logits else argument for argument in arguments]
            grads = torch.autograd.grad(loss(at, x.targets), inputs, create_graph=True)
            v = [torch.ones_like(grad).cumsum(-1) for grad in grads]
            seconds = torch.autograd.grad(grads, (at, x.targets), v, allow_unused=True)
            results = [*grads, *(second for second in seconds if second is not None)]
            if loss is clipped:
                expected = results
        for result, value in zip(results, expected, strict=True):
            torch.testing.assert_close(result, value)
    assert (x.logits.abs() > 1).any()


def test_hessian_is_exact():
    logits = torch.tensor([0.0, 40.0, 3.0, -2.0], dtype=torch.float64)
    p = oracle.softmax(logits.numpy())
    exact = np.diag(p) - np.outer(p, p)
    for hessian in (torch.func.hessian, lambda f: partial(torch.autograd.functional.hessian, f)):
        result = hessian(lambda z: adapter.softmax_ce(z, 1))(logits)
        oracle.assert_within(8, result.numpy(), exact, np.float64)


def test_hessian_vector_products():
    logits, targets, _ = batch()
    v = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sl.softmax_mse.hessian_vector_product(logits.detach().numpy(), targets.numpy(), v.numpy())
    for function in (hvp, vhp):
        _, product = function(lambda z: adapter.softmax_mse(z, targets), logits, v)
        np.testing.assert_allclose(product.numpy(), expected, rtol=1e-13)


def test_no_third_derivative():
    logits, targets, _ = batch()
    (grad,) = torch.autograd.grad(adapter.sigmoid_bce(logits, targets), logits, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        second.sum().backward()
    for outer in (torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(NotImplementedError, match="third derivative"):
            outer(torch.func.hessian(lambda z: adapter.sigmoid_bce(z, targets)))(logits.detach())


def test_third_derivative_by_weights():
    """Only the first two may be by logits and targets."""
    x = Inputs()

    def of_weight(loss):
        return lambda w: torch.func.hessian(lambda z: loss(z, w))(x.logits.detach())

    ours = of_weight(lambda z, w: adapter.softmax_ce(z, x.indices, sample_weight=w))
    theirs = of_weight(lambda z, w: weighted_cross_entropy(z, x.indices, w))
    weight = x.weight.detach()
    for outer in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(outer(ours)(weight), outer(theirs)(weight))


# ---- beside PyTorch's own losses ------------------------------------------------------------------


def weighted_cross_entropy(z, targets, weight=None, *, reduction="mean", class_weight=None, smoothing=0.0):
    """Cross-entropy with weights of rows, of PyTorch's own functions."""
    cw = None if class_weight is None else torch.tensor(class_weight, dtype=z.dtype)
    loss = functional.cross_entropy(
        z, targets, weight=cw, reduction="none", label_smoothing=smoothing, ignore_index=-100
    )
    weight = torch.ones_like(loss) if weight is None else weight
    counts = part = torch.ones_like(loss)
    if not targets.is_floating_point():
        counts = part = (targets != -100).double()
        if cw is not None:
            valid = torch.where(targets == -100, 0, targets)
            # flat: vmap does not know an index without dimensions
            part = counts * cw[valid.flatten()].reshape(valid.shape)
    if reduction == "none":
        return weight * loss
    divisor = {"sum": 1.0, "mean": (part * weight).sum(), "batchmean": counts.sum()}[reduction]
    return (weight * loss).sum() / divisor


def test_gradient_by_sample_weight():
    """That of ``sum(w l) / sum(w)`` is ``(l - L) / sum(w)``, whatever the divisor is thought to be."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]], requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    adapter.softmax_ce(logits, torch.tensor([0, 0, 1]), sample_weight=weight).backward()
    losses = np.log1p(np.exp([-2.0, 1.0, 0.0]))
    mean = np.average(losses, weights=[1, 2, 3])
    np.testing.assert_allclose(weight.grad.numpy(), (losses - mean) / 6, rtol=1e-6)


def derivatives(function, arguments, by):
    """Value and what reverse, forward and mixed mode make of it."""
    f = torch.func
    scalar = lambda *a: function(*a).sum()  # noqa: E731
    yield function(*arguments)
    yield f.grad(scalar, by)(*arguments)
    for outer, inner in (
        (f.jacfwd, f.jacrev),
        (f.jacrev, f.jacrev),
        (f.jacfwd, f.jacfwd),
        (f.jacrev, f.jacfwd),
    ):
        yield outer(inner(scalar, by), by)(*arguments)


def assert_same_derivatives(ours, theirs, arguments, by):
    leaves = torch.utils._pytree.tree_leaves
    for result, expected in zip(
        derivatives(ours, arguments, by), derivatives(theirs, arguments, by), strict=True
    ):
        for a, b in zip(leaves(result), leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def stack(count, n=5, k=4):
    """`count` batches of logits, class indices, probabilities and weights."""
    x = [Inputs(n, k, seed) for seed in range(count)]
    return [
        torch.stack([getattr(inputs, name).detach() for inputs in x])
        for name in ("logits", "indices", "targets", "weight")
    ]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_func_transforms(reduction):
    """grad, jacrev, jacfwd, hessian and vmap, in each other, beside the same on PyTorch's loss."""
    options = {"reduction": reduction, "class_weight": CLASS_WEIGHT}
    loss = adapter.differentiable(sl.SoftmaxCE(label_smoothing=0.1, **options))

    def ours(z, t, w=None):
        return loss(z, t, sample_weight=w)

    theirs = partial(weighted_cross_entropy, smoothing=0.1, **options)
    z, y, t, w = stack(2)
    assert_same_derivatives(ours, theirs, (z[0], y[0], w[0]), (0, 2))
    assert_same_derivatives(ours, theirs, (z[0], t[0], w[0]), (0, 1, 2))
    vmap = torch.vmap
    assert_same_derivatives(vmap(ours), vmap(theirs), (z, y), 0)
    assert_same_derivatives(vmap(ours), vmap(theirs), (z, y, w), (0, 2))
    # one row, then one batch, at a time; arguments that are not batched, or on another dimension
    assert_same_derivatives(vmap(vmap(ours)), vmap(vmap(theirs)), (z, t, w), (0, 1, 2))
    # none ignored: PyTorch's mean over no row is NaN
    assert_same_derivatives(vmap(vmap(ours)), vmap(vmap(theirs)), (z, y.clamp(min=0), w), (0, 2))
    dims = (1, None, None)
    moved = (z.movedim(0, 1), y[0], w[0])
    assert_same_derivatives(vmap(ours, dims), vmap(theirs, dims), moved, 0)
    dims = (None, None, 0)
    assert_same_derivatives(vmap(ours, dims), vmap(theirs, dims), (z[0], y[0], w), 2)
    # transforms inside of vmap
    for f in (torch.func.grad, torch.func.hessian):
        inner = (f(lambda *a, g=g: g(*a).sum(), (0, 2)) for g in (ours, theirs))
        results, expected = (vmap(g)(z, y, w) for g in inner)
        torch.testing.assert_close(results, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("stem", ["sigmoid_bce", "sigmoid_mse", "softmax_mse"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_func_transforms_of_other_losses(stem, reduction):
    loss = adapter.differentiable(type(getattr(sl, stem))(reduction=reduction))

    def ours(z, t, w):
        return loss(z, t, sample_weight=w)

    def theirs(z, t, w):
        if stem == "sigmoid_bce":
            each = functional.binary_cross_entropy_with_logits(z, t, reduction="none")
        else:
            each = (torch.sigmoid(z) - t) ** 2 / 2
        if stem == "softmax_mse":
            each = ((torch.softmax(z, -1) - t) ** 2 / 2).sum(-1) * w
            return each.sum() / w.sum() if reduction == "mean" else each
        each = each * w[..., None]
        return each.mean() if reduction == "mean" else each

    z, _, t, w = stack(2, n=3)
    vmap = torch.vmap
    assert_same_derivatives(vmap(ours), vmap(theirs), (z, t, w), (0, 1, 2))
    assert_same_derivatives(vmap(vmap(ours)), vmap(vmap(theirs)), (z, t, w), (0, 1, 2))


def test_vmap_over_single_logits():
    z, t = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.25])
    loss = adapter.differentiable(sl.SigmoidBCE(class_weight=[2.0], pos_weight=[3.0]))
    expected = sl.SigmoidBCE(reduction="none", pos_weight=3.0).value_and_grad(z.numpy(), t.numpy())
    value, grad = torch.vmap(loss)(z, t), torch.vmap(torch.func.grad(loss))(z, t)
    np.testing.assert_allclose(value.numpy(), 2 * expected[0], rtol=1e-6)
    np.testing.assert_allclose(grad.numpy(), 2 * expected[1], rtol=1e-6)


def test_vmap_over_the_mask_and_the_denominator():
    x = Inputs()
    loss = adapter.softmax_ce
    masks = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
    totals = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    z = x.logits.detach()
    for result, expected in (
        (
            torch.vmap(lambda m: loss(z, x.targets, mask=m))(masks),
            [loss(z, x.targets, mask=m) for m in masks],
        ),
        (
            torch.vmap(lambda d: loss(z, x.targets, denominator=d))(totals),
            [loss(z, x.targets, denominator=d) for d in totals],
        ),
    ):
        torch.testing.assert_close(result, torch.stack(expected))


def test_transforms_without_grad_mode():
    """A call that no tape follows does without a Function, but not under a transform."""
    w, targets, _ = batch()
    logits = w.detach()
    labels, v = targets.argmax(1), torch.ones_like(logits) * torch.arange(logits.shape[1])
    each = torch.stack([adapter.softmax_ce(z, y) for z, y in zip(logits, labels, strict=True)])
    (grad,) = torch.autograd.grad(adapter.softmax_ce(w, labels), w)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(adapter.softmax_ce)(logits, labels), each)
        _, tangent = torch.func.jvp(lambda z: adapter.softmax_ce(z, labels), (logits,), (v,))
        torch.testing.assert_close(tangent, (grad * v).sum())
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(logits, v)
            out = torch.autograd.forward_ad.unpack_dual(adapter.softmax_ce(dual, labels))
        torch.testing.assert_close(out.tangent, (grad * v).sum())
        assert not adapter.softmax_ce(w, labels).requires_grad
    assert adapter.softmax_ce(w, labels).requires_grad
    assert not adapter.softmax_ce(logits, labels).requires_grad


def test_one_call_for_a_vmap():
    class Counted(sl.SoftmaxCE):
        __slots__ = ()
        calls: list = []  # noqa: RUF012

        def __call__(self, logits, targets, **options):
            self.calls.append(logits.shape)
            return super().__call__(logits, targets, **options)

    torch.vmap(adapter.differentiable(Counted()))(torch.zeros(50, 2, 3), torch.zeros(50, 2, dtype=int))
    assert Counted.calls == [(50, 2, 3)]


def test_forward_mode():
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    v = torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    y = torch.tensor([0, 1])
    for requires_grad in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits.detach().requires_grad_(requires_grad), v)
            tangent = forward_ad.unpack_dual(adapter.softmax_ce(dual, y)).tangent
            expected = forward_ad.unpack_dual(functional.cross_entropy(dual, y)).tangent
        torch.testing.assert_close(tangent, expected)
    assert tangent.item() == pytest.approx(-0.2391407, rel=1e-6)


def test_forward_mode_over_a_plain_backward():
    """The gradient has a tangent though no graph of it was asked for."""
    x = Inputs()
    v = torch.ones_like(x.logits).cumsum(1)
    tangents = []
    for loss in (adapter.softmax_ce, functional.cross_entropy):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.logits, v)
            (grad,) = torch.autograd.grad(loss(dual, x.indices), dual)
            tangents.append(forward_ad.unpack_dual(grad).tangent)
    torch.testing.assert_close(*tangents)


def test_forward_mode_over_the_weights():
    x = Inputs()
    v = torch.ones_like(x.weight).cumsum(0)
    tangents = []
    for loss in (
        lambda w: adapter.softmax_ce(x.logits, x.indices, sample_weight=w),
        lambda w: weighted_cross_entropy(x.logits, x.indices, w),
    ):
        with forward_ad.dual_level():
            result = loss(forward_ad.make_dual(x.weight.detach(), v))
            tangents.append(forward_ad.unpack_dual(result).tangent)
    torch.testing.assert_close(*tangents)


def test_learning_to_reweight():
    """The gradient by weights that are 0, through a step of gradient descent."""
    rng = np.random.default_rng(0)
    x, x_clean = (torch.tensor(rng.normal(size=(8, 5))) for _ in range(2))
    y, y_clean = (torch.tensor(rng.integers(0, 3, 8)) for _ in range(2))
    start = torch.tensor(rng.normal(size=(5, 3)), requires_grad=True)
    loss = adapter.differentiable(sl.SoftmaxCE(reduction="sum"))

    def by_weights(weighted, plain):
        weight = torch.zeros(8, dtype=torch.float64, requires_grad=True)
        (step,) = torch.autograd.grad(weighted(x @ start, y, weight), start, create_graph=True)
        return torch.autograd.grad(plain(x_clean @ (start - step), y_clean), weight)[0]

    expected = by_weights(partial(weighted_cross_entropy, reduction="sum"), functional.cross_entropy)
    result = by_weights(lambda z, y, w: loss(z, y, sample_weight=w), adapter.softmax_ce)
    assert expected.abs().min() > 0
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    "transform", [lambda f: f, lambda f: lambda *a: torch.vmap(f)(*(x[None] for x in a))]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weight_of_zero_removes_a_row(reduction, transform):
    """Whatever its logits hold; its own gradient is the loss of the row where that is finite."""
    z = [[1.0, 2.0, 3.0], [NAN, 0.0, 0.0], [0.0, -INF, 1.0], [0.0, 1.0, 0.0], [0.0, -INF, 0.0]]
    logits = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 1, 2, 2])
    weight = torch.tensor([1.0, 0.0, 0.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss = adapter.differentiable(sl.SoftmaxCE(reduction=reduction))
    transform(lambda z, w: loss(z, y, sample_weight=w))(logits, weight).sum().backward()
    expected = sl.SoftmaxCE(reduction=reduction).value_and_grad(
        logits.detach().numpy(), y.numpy(), sample_weight=weight.detach().numpy()
    )[1]
    torch.testing.assert_close(logits.grad, torch.from_numpy(expected))
    rows = np.log1p([np.exp(1) + np.exp(2), 0, 0, 1 + np.e, 1])
    mean = (rows[0] + 2 * rows[3]) / 3
    by_weight = {"mean": (rows - mean) / 3, "batchmean": rows / 5}.get(reduction, rows)
    by_weight[[1, 2]] = 0
    torch.testing.assert_close(weight.grad, torch.from_numpy(by_weight))


def test_nothing_counts():
    for weight in (torch.zeros(2), torch.zeros(2, requires_grad=True)):
        logits = torch.ones(2, 3, requires_grad=True)
        loss = adapter.softmax_ce(logits, torch.tensor([0, 1]), sample_weight=weight)
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()
    assert not weight.grad.any()
    weights = torch.zeros(4, 2)
    values = torch.vmap(lambda w: adapter.softmax_ce(torch.ones(2, 3), torch.tensor([0, 1]), sample_weight=w))
    assert torch.equal(values(weights), torch.zeros(4))


# ---- PyTorch's own samples ------------------------------------------------------------------------


def internal(name):
    """One of PyTorch's modules of test cases, which need packages of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"torch.testing._internal.{name}", exc_type=ImportError)


def cross_entropy(weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return adapter.differentiable(
        sl.SoftmaxCE(
            reduction=reduction,
            class_weight=None if weight is None else weight.tolist(),
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    )


def bce_with_logits(weight=None, pos_weight=None, reduction="mean"):
    loss = adapter.differentiable(
        sl.SigmoidBCE(reduction=reduction, pos_weight=None if pos_weight is None else pos_weight.tolist())
    )
    if weight is None:
        return loss
    return lambda z, t: loss(z, t, sample_weight=weight.expand(z.shape))


def assert_like_pytorch(make, own, options, dtype, logits, targets):
    """Value and gradients within the accuracy of the losses, in the dtypes of PyTorch's own.

    That is 4 ulp and a rounding, of the largest term where soft targets make a difference; half precision
    is rounded once. PyTorch's float64, to compare with, is itself off by its eps times the logits, up to 9.
    """
    if options.get("weight") is not None:
        options = {**options, "weight": options["weight"].abs().clamp(min=0.1)}
    ours = make(**options)
    if targets.dtype == torch.int64 and (targets == options.get("ignore_index", -100)).all():
        assert not ours(logits, targets).any()
        return

    def theirs(dtype):
        return own(**{name: x.to(dtype) if isinstance(x, torch.Tensor) else x for name, x in options.items()})

    def run(function, dtype):
        z = logits.detach().to(dtype).requires_grad_()
        t = targets.detach()
        if t.is_floating_point():
            t = t.to(dtype).requires_grad_(targets.requires_grad)
        value = function(z, t)
        cotangent = torch.linspace(0.5, 1, value.numel(), dtype=dtype).reshape(value.shape)
        inputs = [z, t] if t.requires_grad else [z]
        return value, *torch.autograd.grad(value, inputs, cotangent)

    eps = torch.finfo(dtype).eps
    rtol = eps if dtype.itemsize == 2 else 5 * eps
    exact = run(theirs(torch.float64), torch.float64)
    for result, own, reference in zip(run(ours, dtype), run(theirs(dtype), dtype), exact, strict=True):
        assert result.dtype == own.dtype
        assert result.shape == own.shape
        atol = 16 * np.finfo(np.float64).eps
        if targets.is_floating_point() or options.get("label_smoothing"):
            atol += rtol * max(1, reference.abs().max().item())
        torch.testing.assert_close(result.double(), reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "make", "count"),
    [
        ("cross_entropy", cross_entropy, 21),
        ("binary_cross_entropy_with_logits", bce_with_logits, 26),
    ],
)
def test_samples_of_op(name, make, count, dtype):
    ops = internal("common_methods_invocations").op_db
    (op,) = [op for op in ops if op.name == f"nn.functional.{name}"]
    own = getattr(functional, name)
    torch.manual_seed(0)
    seen = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        arguments = sample.input, *sample.args
        assert_like_pytorch(make, lambda **o: partial(own, **o), sample.kwargs, dtype, *arguments)
        if dtype == torch.float64 and "weight" not in sample.kwargs:
            loss = make(**sample.kwargs)
            assert torch.autograd.gradcheck(loss, arguments, fast_mode=True, check_forward_ad=True)
            assert torch.autograd.gradgradcheck(loss, arguments, fast_mode=True, check_fwd_over_rev=True)
        seen += 1
    assert seen >= count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "make", "count"),
    [("CrossEntropyLoss", cross_entropy, 96), ("BCEWithLogitsLoss", bce_with_logits, 6)],
)
def test_samples_of_module(name, make, count, dtype):
    modules = internal("common_modules").module_db
    cls = getattr(torch.nn, name)
    (info,) = [info for info in modules if info.module_cls is cls]
    torch.manual_seed(0)
    seen = 0
    for sample in info.module_inputs_func(info, "cpu", dtype, True, True):
        assert_like_pytorch(make, cls, sample.constructor_input.kwargs, dtype, *sample.forward_input.args)
        seen += 1
    assert seen >= count


# ---- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("stem", STEMS)
def test_value_and_gradient_are_those_of_the_loss(stem, reduction, dtype):
    logits, targets, weight = batch(dtype, scale=40)
    loss = type(getattr(sl, stem))(reduction=reduction)
    value, grad = loss.value_and_grad(logits.detach().numpy(), targets.numpy(), sample_weight=weight.numpy())
    result = adapter.differentiable(loss)(logits, targets, sample_weight=weight)
    result.sum().backward()
    assert result.dtype == dtype
    assert_same_bits(result.detach().numpy(), np.asarray(value, grad.dtype))
    assert_same_bits(logits.grad.numpy(), grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stem", STEMS)
def test_half_precision(stem, dtype):
    """Everything may be; the results are those of the same numbers in float32, rounded once."""
    logits, targets, weight = (x.detach().to(dtype) for x in batch(torch.float64, scale=1))
    denominator = torch.tensor(3.0, dtype=dtype)
    loss = getattr(adapter, stem)
    results = {}
    for precision in (dtype, torch.float32):
        z, t, w, d = (x.to(precision).requires_grad_() for x in (logits, targets, weight, denominator))
        value = loss(z, t, sample_weight=w, denominator=d)
        assert value.dtype == precision
        results[precision] = [value, *torch.autograd.grad(value, (z, t, w, d))]
    for half, single in zip(*results.values(), strict=True):
        assert half.dtype == dtype
        assert torch.equal(half, single.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    """As with PyTorch's losses, the loss is float32 and the gradients have the dtypes of the inputs."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 4)
    x, y, bits = torch.ones(2, 3), torch.tensor([0, 1]), torch.eye(4)[:2]
    for loss, own, targets in (
        (adapter.softmax_ce, functional.cross_entropy, y),
        (adapter.sigmoid_bce, functional.binary_cross_entropy_with_logits, bits),
    ):
        grads = []
        for function in (loss, own):
            net.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                logits = net(x)
                assert logits.dtype == dtype
                value = function(logits, targets)
                assert value.dtype == torch.float32
            value.backward()
            grads.append(net.weight.grad.clone())
        torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-3)
    with torch.autocast("cpu", dtype=dtype):
        assert adapter.softmax_ce(logits.double(), y).dtype == torch.float64


def test_float32_overflows_to_inf():
    """As a tensor of that dtype does, without a warning."""
    loss = adapter.differentiable(sl.SoftmaxCE(reduction="sum"))
    assert loss(torch.tensor([[3e38, 0.0]] * 2), torch.tensor([1, 1])) == INF


# ---- class axis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (5, 3), (5, 3, 4), (3, 3, 3), (2, 3, 3, 3), (2, 3, 1, 2, 3)])
def test_class_axis_is_pytorch_s(shape):
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=shape))
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    indices = torch.tensor(rng.integers(0, 3, rows))
    soft = torch.softmax(torch.tensor(rng.normal(size=shape)), min(1, len(shape) - 1))
    p = torch.softmax(logits, min(1, len(shape) - 1))
    for targets in (indices, soft):
        expected = functional.cross_entropy(logits, targets)
        for loss in (adapter.softmax_ce, adapter.differentiable(sl.SoftmaxCE(axis=1))):
            torch.testing.assert_close(loss(logits, targets), expected)
    expected = ((p - soft) ** 2).sum() / 2 / max(indices.numel(), 1)
    torch.testing.assert_close(adapter.softmax_mse(logits, soft), expected)


def test_default_axis_of_a_loss():
    """PyTorch's, unless the targets say that it is the last."""
    rng = np.random.default_rng(0)
    loss = adapter.differentiable(sl.SoftmaxCE(label_smoothing=0.1))
    own = partial(functional.cross_entropy, label_smoothing=0.1)
    logits = torch.tensor(rng.normal(size=(2, 3, 4)))
    for targets in (torch.zeros(2, 4, dtype=int), torch.softmax(logits, 1), torch.rand(2, 3, 4)):
        torch.testing.assert_close(loss(logits, targets), own(logits, targets))
    targets = torch.tensor(rng.integers(0, 4, (2, 3)))
    torch.testing.assert_close(loss(logits, targets), own(logits.movedim(-1, 1), targets))
    # both axes are the same
    assert loss(torch.ones(2, 1, 1), torch.zeros(2, 1, dtype=int)) == 0
    assert loss(torch.ones(2, 1, 1), torch.ones(2, 1, 1)) == 0


@pytest.mark.parametrize("stem", ["softmax_ce", "softmax_mse"])
def test_doubtful_axis_is_refused(stem):
    cls = type(getattr(sl, stem))
    logits = torch.tensor(np.random.default_rng(0).normal(size=(2, 3, 3)))
    indices, soft = torch.zeros(2, 3, dtype=int), torch.full((2, 3, 3), 1 / 3)
    long, long_soft = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 0.25)
    name = cls.__name__
    advice = rf"{name}\(axis=1\) for PyTorch's, {name}\(axis=2\) for the last"
    for arguments in ((logits, indices), (logits, soft), (long, long_soft)):
        with pytest.raises(ValueError, match=advice):
            adapter.differentiable(cls())(*arguments)
    for axis, moved in ((1, logits), (2, logits.movedim(1, 2))):
        loss = adapter.differentiable(cls(axis=axis))
        expected = adapter.differentiable(cls(axis=1))(moved, indices)
        torch.testing.assert_close(loss(logits, indices), expected)
        loss(logits, soft)
    with pytest.raises(ValueError, match=rf"\(2, 3\).*\(2, 3, 4\).*last axis.* from axis 1; .*{advice}"):
        getattr(adapter, stem)(long, torch.zeros(2, 3, dtype=int))


def test_axis_that_is_not_there():
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3\) have no axis 2"):
        adapter.differentiable(sl.SoftmaxCE(axis=2))(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"logits of shape \(\) have no axis"):
        adapter.softmax_ce(torch.tensor(0.0), torch.tensor(0))


# ---- calls ----------------------------------------------------------------------------------------


def test_one_pass_over_shared_memory():
    class Recorder(sl.SoftmaxCE):
        """A loss that keeps the arrays that it was given."""

        __slots__ = ()
        calls: list = []  # noqa: RUF012

        def __call__(self, logits, targets, **options):
            self.calls.append(("call", logits, targets))
            return super().__call__(logits, targets, **options)

        def value_and_grad(self, logits, targets, **options):
            self.calls.append(("value_and_grad", logits, targets))
            return super().value_and_grad(logits, targets, **options)

    function = adapter.differentiable(Recorder())
    logits, targets, _ = batch()
    function(logits, targets).backward()
    with torch.no_grad():
        function(logits, targets)
    function(logits.detach(), targets)
    assert [call[0] for call in Recorder.calls] == ["value_and_grad", "call", "call"]
    for _, given_logits, given_targets in Recorder.calls:
        assert np.shares_memory(given_logits, logits.detach().numpy())
        assert np.shares_memory(given_targets, targets.numpy())


def test_arguments_that_are_not_tensors():
    """Whatever the loss takes, its derivatives take."""
    x = Inputs()
    weight, mask = [1.0, 2.0, 3.0], np.array([True, False, True])
    options = {"sample_weight": weight, "mask": mask}
    tensors = {"sample_weight": torch.tensor(weight), "mask": torch.tensor(mask)}
    for plain, tensor in (
        ([0, 3, 1], x.indices),
        (np.array([0, 3, 1], ">i2"), x.indices),
        (x.targets.detach().numpy()[:, ::-1], x.targets.detach().flip(1)),
    ):
        hessians = [
            torch.func.hessian(lambda z, t=t, o=o: adapter.softmax_ce(z, t, **o))(x.logits.detach())
            for t, o in ((plain, options), (tensor, tensors))
        ]
        torch.testing.assert_close(*hessians)
        grads = [
            torch.vmap(
                torch.func.grad(lambda w, t=t, m=m: adapter.softmax_ce(x.logits, t, sample_weight=w, mask=m))
            )(torch.ones(2, 3))
            for t, m in ((plain, mask), (tensor, tensors["mask"]))
        ]
        torch.testing.assert_close(*grads)
    total = torch.tensor(5)
    assert adapter.softmax_ce(x.logits, x.indices, denominator=total) == adapter.softmax_ce(
        x.logits, x.indices, denominator=5
    )


def test_any_layout_of_memory():
    logits, _, _ = batch(torch.float64)
    y = torch.tensor([0, 3, 1, 2, 2, 0])
    expected = torch.autograd.grad(adapter.softmax_ce(logits, y), logits)[0]
    parts = torch.complex(torch.zeros_like(logits), -logits).conj().imag
    assert parts.is_neg()
    for view in (logits.detach().t().contiguous().t(), parts.detach()):
        leaf = view.requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(adapter.softmax_ce(leaf, y), leaf)[0], expected)


def test_inference_mode():
    with torch.inference_mode():
        assert adapter.softmax_ce(torch.zeros(2, 4), torch.tensor([0, 1])).item() == pytest.approx(np.log(4))


def test_can_be_copied():
    loss = adapter.differentiable(sl.SoftmaxCE(label_smoothing=0.1, axis=1))
    logits, y = torch.ones(2, 3, 4), torch.zeros(2, 4, dtype=int)
    torch.func.hessian(loss)(logits, y)
    for twin in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert repr(twin) == "differentiable(SoftmaxCE(label_smoothing=0.1, axis=1))"
        assert twin(logits, y) == loss(logits, y)


# what Dynamo says wherever a graph breaks
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compile():
    """A graph on both sides of the call, and the same results, backward and transforms included."""
    torch.manual_seed(0)
    net = torch.nn.Linear(5, 3)
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    weight = torch.rand(4, requires_grad=True)
    z, v = torch.randn(4, 3), torch.randn(4, 3)

    def step(x, w):
        return adapter.softmax_ce(net(x).tanh() * 2, y, sample_weight=w) * 3 + 1

    def train(x):
        net.zero_grad()
        step(x, weight).backward()
        return net.weight.grad.clone()

    for function, *arguments in (
        (step, x, weight),
        (train, x),
        (lambda z: torch.func.grad(adapter.softmax_ce)(z, y), z),
        (lambda z: torch.func.jvp(lambda z: adapter.softmax_ce(z, y), (z,), (v,))[1], z),
        (lambda z: torch.vmap(adapter.softmax_ce)(z, y), z),
    ):
        compiled = torch.compile(function, backend="eager")
        torch.testing.assert_close(compiled(*arguments), function(*arguments))
    compiled = torch.compile(step, backend="eager")
    grads = [torch.autograd.grad(f(x, weight), (net.weight, weight)) for f in (compiled, step)]
    torch.testing.assert_close(*grads)
    assert torch._dynamo.explain(step)(x, weight).graph_count == 2


# ---- what is refused ------------------------------------------------------------------------------


def test_messages():
    z, y = torch.zeros(2, 3), torch.tensor([0, 1])
    for error, match, arguments in (
        (TypeError, r"must be a torch.Tensor, not ndarray", (z.numpy(), y)),
        (TypeError, r"or float64, not torch.int64$", (z.long(), y)),
        (TypeError, r"not torch.int64; the order is \(logits, targets\)", (y, z)),
        (TypeError, r"not torch.complex64", (z + 0j, y)),
        (
            TypeError,
            r"logits is a tensor of layout torch.sparse_coo; pass logits.to_dense\(\)",
            (z.to_sparse(), y),
        ),
        (NotImplementedError, r"logits is a tensor on the device meta", (z.to("meta"), y)),
        (NotImplementedError, r"targets is a tensor on the device meta", (z, y.to("meta"))),
        (
            ValueError,
            r"shape \(2,\) require grad, but class indices have none",
            (z, y.double().requires_grad_()),
        ),
        (ValueError, r"\(3,\) where logits of shape \(2, 3\) need \(2,\)", (z, torch.zeros(3, dtype=int))),
        (ValueError, r"class index at 1 is 3", (z, torch.tensor([0, 3]))),
    ):
        with pytest.raises(error, match=match):
            adapter.softmax_ce(*arguments)
    for error, match, options in (
        (NotImplementedError, r"sample_weight is a tensor on the device", {"sample_weight": y.to("meta")}),
        (NotImplementedError, r"mask is a tensor on the device", {"mask": y.to("meta")}),
        (NotImplementedError, r"denominator is a tensor on the device", {"denominator": y[0].to("meta")}),
        (
            ValueError,
            r"denominator is a tensor of shape \(2,\), not one number",
            {"denominator": torch.ones(2)},
        ),
        (ValueError, r"sample_weight has shape \(3,\)", {"sample_weight": torch.ones(3)}),
    ):
        with pytest.raises(error, match=match):
            adapter.softmax_ce(z, y, **options)


def test_losses_that_are_refused():
    with pytest.raises(TypeError, match=r"loss object such as stableloss.SoftmaxCE\(\)"):
        adapter.differentiable(functional.cross_entropy)
    with pytest.raises(ValueError, match="from_probabilities=True is the one by the logits"):
        adapter.differentiable(sl.SoftmaxCE(from_probabilities=True))


def test_net_learns_digits():
    data = digits()
    x, x_test = (torch.tensor(array, dtype=torch.float32) for array in (data.x, data.x_test))
    y = torch.tensor(data.y)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    first = adapter.softmax_ce(net(x), y).item()
    rng = np.random.default_rng(0)
    for _ in range(15):
        for rows in batches(rng, len(x), 20):
            optimizer.zero_grad()
            adapter.softmax_ce(net(x[rows]), y[rows]).backward()
            optimizer.step()
    assert adapter.softmax_ce(net(x), y).item() < first / 10
    assert np.mean(net(x_test).argmax(dim=1).numpy() == data.y_test) > 0.95
