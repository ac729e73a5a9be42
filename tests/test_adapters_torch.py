"""First and second derivatives by PyTorch, on tensors that share their memory with numpy."""

import numpy as np
import oracle
import pytest
from cases import assert_same_bits
from real_data import batches, digits

import stableloss as sl

torch = pytest.importorskip("torch")
from stableloss.adapters import torch as adapter  # noqa: E402

STEMS = ("sigmoid_bce", "sigmoid_mse", "softmax_ce", "softmax_mse")
REDUCTIONS = ("mean", "sum", "batchmean", "none")


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


class Recorder:
    """A loss that keeps the arrays it was given and those it returned."""

    def __init__(self, loss):
        self.loss, self.calls = loss, []

    def __call__(self, logits, targets, **options):
        self.calls.append(("call", logits, targets, None))
        return self.loss(logits, targets, **options)

    def value_and_grad(self, logits, targets, **options):
        value, grad = self.loss.value_and_grad(logits, targets, **options)
        self.calls.append(("value_and_grad", logits, targets, grad))
        return value, grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("stem", STEMS)
def test_gradcheck(stem, reduction):
    logits, targets, weight = batch()
    loss = adapter.differentiable(type(getattr(sl, stem))(reduction=reduction))
    for options in ({}, {"sample_weight": weight}):
        assert torch.autograd.gradcheck(lambda z, o=options: loss(z, targets, **o), logits)
        assert torch.autograd.gradgradcheck(lambda z, o=options: loss(z, targets, **o), logits)


def test_gradcheck_with_pytorch_s_class_axis():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(2, 3, 4)), requires_grad=True)
    targets = torch.from_numpy(rng.integers(0, 3, (2, 4)))
    loss = adapter.differentiable(sl.SoftmaxCE(reduction="none", axis=1))
    assert loss(logits, targets).shape == (2, 4)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, targets), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stem", STEMS)
def test_value_and_gradient_are_those_of_the_loss(stem, dtype):
    logits, targets, _ = batch(dtype, scale=40)
    value, grad = getattr(sl, stem).value_and_grad(logits.detach().numpy(), targets.numpy())
    loss = getattr(adapter, stem)(logits, targets)
    loss.backward()
    assert loss.dtype == torch.float64
    assert loss.item() == value
    assert_same_bits(logits.grad.numpy(), grad)


def test_one_pass_over_shared_memory():
    loss = Recorder(sl.softmax_ce)
    function = adapter.differentiable(loss)
    logits, targets, _ = batch()
    function(logits, targets).backward()
    with torch.no_grad():
        function(logits, targets)
    function(logits.detach(), targets)
    assert [call[0] for call in loss.calls] == ["value_and_grad", "call", "call"]
    for _, given_logits, given_targets, _ in loss.calls:
        assert np.shares_memory(given_logits, logits.detach().numpy())
        assert np.shares_memory(given_targets, targets.numpy())


def test_hessian_is_exact():
    logits = torch.tensor([0.0, 40.0, 3.0, -2.0], dtype=torch.float64)
    p = oracle.softmax(logits.numpy())
    exact = np.diag(p) - np.outer(p, p)
    hessian = torch.autograd.functional.hessian(lambda z: adapter.softmax_ce(z, 1), logits)
    oracle.assert_within(8, hessian.numpy(), exact, np.float64)


def test_hessian_vector_products():
    logits, targets, _ = batch()
    v = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sl.softmax_mse.hessian_vector_product(logits.detach().numpy(), targets.numpy(), v.numpy())
    for function in (torch.autograd.functional.hvp, torch.autograd.functional.vhp):
        _, product = function(lambda z: adapter.softmax_mse(z, targets), logits, v)
        np.testing.assert_allclose(product.numpy(), expected, rtol=1e-13)


def test_no_third_derivative():
    logits, targets, _ = batch()
    (grad,) = torch.autograd.grad(adapter.sigmoid_bce(logits, targets), logits, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        second.sum().backward()


def test_targets_that_want_a_gradient_are_refused():
    logits, targets, _ = batch()
    with pytest.raises(RuntimeError, match="requires grad"):
        adapter.softmax_ce(logits, targets.requires_grad_())


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
