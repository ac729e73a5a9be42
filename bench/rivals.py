"""The libraries that stableloss is timed against, each at its best form.

A rival computes the mean loss and its gradient for its `losses`, with its `options` as its users write
them, and its `activations`; what none has a formula for is timed beside numpy's copy alone.
`prepare` does everything that a training loop would do once (conversion, compilation, allocation of
reused outputs) and returns a callable without arguments that gives `(loss, grad)`, or the activation.
Libraries are imported only there, and use as many threads as stableloss may.
"""

import functools
import importlib
import importlib.metadata
import math

import numpy as np
from cases import ACTIVATIONS, AT_CALL, DENSE, HALF, LOSSES, OPTIONS
from harness import THREADS


def numpy_softmax_ce(logits, targets):
    """Textbook softmax + cross-entropy over class indices, stable against overflow."""
    n = len(logits)
    rows = np.arange(n)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exps = np.exp(shifted)
    total = exps.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, targets])
    grad = exps / total
    grad[rows, targets] -= 1
    grad /= n
    return loss, grad


def numpy_softmax_mse(logits, targets):
    """Textbook softmax + half squared error over class indices, summed over classes."""
    n = len(logits)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = exps / exps.sum(axis=1, keepdims=True)
    diff = probs.copy()
    diff[np.arange(n), targets] -= 1
    loss = 0.5 * np.sum(diff * diff) / n
    grad = probs * (diff - np.sum(probs * diff, axis=1, keepdims=True)) / n
    return loss, grad


def numpy_sigmoid(logits):
    """Sigmoid that never takes the exponential of a positive number."""
    exps = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, exps) / (1 + exps)


def numpy_sigmoid_bce(logits, targets):
    """Textbook sigmoid + binary cross-entropy on logits."""
    softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
    loss = np.mean(softplus - logits * targets)
    return loss, (numpy_sigmoid(logits) - targets) / logits.size


def numpy_sigmoid_mse(logits, targets):
    """Textbook sigmoid + half squared error."""
    probs = numpy_sigmoid(logits)
    diff = probs - targets
    loss = 0.5 * np.mean(diff * diff)
    return loss, diff * probs * (1 - probs) / logits.size


NUMPY_RECIPES = {loss: globals()[f"numpy_{loss}"] for loss in LOSSES if f"numpy_{loss}" in globals()}


# What softmax + cross-entropy takes where a library differentiates it. From probabilities, the gradient by
# the logits is not that of the loss by its argument, and has to be written out.
DIFFERENTIATED = {DENSE, HALF, *OPTIONS} - {"from_probabilities", "sample_weight"}


class Rival:
    """One form of one library; a method per loss, named after it, unless `loss_call` does without."""

    library = ""
    form = ""
    distribution = ""
    losses = tuple(NUMPY_RECIPES)
    activations = ()
    # What its softmax + cross-entropy takes of what a case may ask for.
    options = frozenset()
    # Whether bool and uint8 targets are read as they are; others get them as floats, converted beforehand.
    takes_flags = False

    def available(self):
        try:
            importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    def version(self):
        return importlib.metadata.version(self.distribution)

    def takes(self, case):
        if case.is_activation:
            return case.loss in self.activations
        return case.loss in self.losses and case.asks <= self.options

    def prepare(self, case, logits, targets, given):
        if case.is_activation:
            return self.activation_call(case.loss, logits)
        return self.loss_call(case.loss, logits, targets, **given)

    def loss_call(self, loss, logits, targets, **options):
        return getattr(self, loss)(logits, targets, **options)


class NumpyTextbook(Rival):
    library = "numpy"
    form = "textbook"
    distribution = "numpy"

    def loss_call(self, loss, logits, targets):
        return functools.partial(NUMPY_RECIPES[loss], logits, targets)


class NumpyInPlace(Rival):
    """The same formulas with every array reused and as few passes as numpy allows."""

    library = "numpy"
    form = "in place"
    distribution = "numpy"
    activations = ACTIVATIONS
    options = DIFFERENTIATED | {"from_probabilities"}

    def softmax(self, logits, out):
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
        np.exp(out, out=out)
        return np.divide(out, out.sum(axis=1, keepdims=True), out=out)

    def sigmoid(self, logits, out, scratch):
        np.negative(np.abs(logits, out=out), out=out)
        np.exp(out, out=out)
        np.add(out, 1, out=scratch)
        np.copyto(out, 1, where=logits >= 0)
        return np.divide(out, scratch, out=out)

    def activation_call(self, name, logits):
        out, scratch = np.empty_like(logits), np.empty_like(logits)

        def log_sigmoid():
            np.negative(np.abs(logits, out=scratch), out=scratch)
            np.log1p(np.exp(scratch, out=scratch), out=scratch)
            return np.subtract(np.minimum(logits, 0, out=out), scratch, out=out)

        def log_softmax():
            np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
            total = np.exp(out, out=scratch).sum(axis=1, keepdims=True)
            return np.subtract(out, np.log(total), out=out)

        def logsumexp():
            top = logits.max(axis=1, keepdims=True)
            np.subtract(logits, top, out=out)
            return np.log(np.exp(out, out=out).sum(axis=1)) + top[:, 0]

        calls = {
            "sigmoid": functools.partial(self.sigmoid, logits, out, scratch),
            "log_sigmoid": log_sigmoid,
            "softmax": functools.partial(self.softmax, logits, out),
            "log_softmax": log_softmax,
            "logsumexp": logsumexp,
        }
        return calls[name]

    def softmax_ce(
        self, logits, targets, class_weight=None, ignore_index=None, mask=None, label_smoothing=0.0,
        logit_scale=1.0, softcap=None, z_loss=0.0, focal_gamma=0.0, from_probabilities=False, axis=1,
    ):  # fmt: skip
        if targets.ndim == logits.ndim or (focal_gamma and label_smoothing):
            return self.dense_softmax_ce(logits, targets, label_smoothing, focal_gamma)
        grad, k = np.empty_like(logits), logits.shape[1]
        n = logits.size // k
        places = np.indices(targets.shape, sparse=True)

        def of_targets(labels):
            return (places[0], labels, *places[1:])

        if from_probabilities:
            at = of_targets(targets)

            def call():
                loss = -np.log(logits[at]).mean()
                np.multiply(logits, 1 / n, out=grad)
                grad[at] -= 1 / n
                return loss, grad

            return call

        exps = np.empty(logits.shape, np.float32) if logits.dtype == np.float16 else grad
        capped = np.empty_like(exps) if softcap else None
        if class_weight is not None:
            class_weight = class_weight.astype(exps.dtype)

        def call():
            labels, share = targets, 1 / n
            weights = mask
            if class_weight is not None:
                weights = class_weight[targets]
            elif ignore_index is not None:
                weights = targets != ignore_index
                labels = np.where(weights, targets, 0)
            if weights is not None:
                share = (weights / weights.sum()).astype(exps.dtype)
            at = of_targets(labels)

            x = logits
            if exps is not grad:
                np.copyto(exps, x)
                x = exps
            if logit_scale != 1:
                x = np.multiply(x, logit_scale, out=exps)
            if softcap:
                np.tanh(np.multiply(x, 1 / softcap, out=capped), out=capped)
                x = np.multiply(capped, softcap, out=exps)
            top = x.max(axis=1, keepdims=True)
            np.subtract(x, top, out=exps)
            of_target = exps[at]
            mean = exps.mean(axis=1) if label_smoothing else 0
            np.exp(exps, out=exps)
            total = exps.sum(axis=1)
            lse = np.log(total)
            losses = lse - of_target
            if label_smoothing:
                losses += label_smoothing * (of_target - mean)

            # the gradient is `of_softmax` p - `of_labels` t
            of_labels = share * logit_scale
            if focal_gamma:
                p = np.exp(-losses)
                factor = (1 - p) ** focal_gamma + focal_gamma * p * (1 - p) ** (focal_gamma - 1) * losses
                losses *= (1 - p) ** focal_gamma
                of_labels = of_labels * factor
            of_softmax = of_labels
            if z_loss:
                lse += top[:, 0]
                losses += z_loss * lse**2
                of_softmax = of_softmax * (1 + 2 * z_loss * lse)
            np.multiply(exps, (of_softmax / total)[:, None], out=exps)
            if label_smoothing:
                np.subtract(exps, of_labels * label_smoothing / k, out=exps)
            exps[at] -= of_labels * (1 - label_smoothing)
            if softcap:
                np.subtract(1, np.multiply(capped, capped, out=capped), out=capped)
                np.multiply(exps, capped, out=exps)
            if exps is not grad:
                np.copyto(grad, exps, casting="same_kind")
            return (losses * share).sum(), grad

        return call

    def dense_softmax_ce(self, logits, targets, label_smoothing, focal_gamma):
        n, k = logits.shape
        rows = np.arange(n)
        grad, logp, smoothed, scratch = (np.empty_like(logits) for _ in range(4))

        def target_probabilities():
            if not label_smoothing:
                return targets
            smoothed.fill(label_smoothing / k)
            smoothed[rows, targets] += 1 - label_smoothing
            return smoothed

        def plain():
            q = target_probabilities()
            np.subtract(logits, logits.max(axis=1, keepdims=True), out=grad)
            of_targets = np.einsum("ij,ij->i", grad, q)
            np.exp(grad, out=grad)
            total = grad.sum(axis=1, keepdims=True)
            loss = np.mean(np.log(total[:, 0]) - of_targets)
            np.subtract(np.multiply(grad, 1 / total, out=grad), q, out=grad)
            return loss, np.multiply(grad, 1 / n, out=grad)

        def focal():
            """Of exponent 2: that power is a product."""
            q = target_probabilities()
            np.subtract(logits, logits.max(axis=1, keepdims=True), out=logp)
            p = np.exp(logp, out=grad)
            total = p.sum(axis=1, keepdims=True)
            np.subtract(logp, np.log(total), out=logp)
            np.multiply(p, 1 / total, out=p)
            rest = np.subtract(1, p, out=scratch)
            # the gradient is c - p sum(c), c = q rest (2 p log p - rest)
            c = np.multiply(q, rest, out=smoothed)
            loss = -np.einsum("ij,ij,ij->", c, rest, logp) / n
            np.multiply(logp, p, out=logp)
            np.multiply(logp, 2, out=logp)
            np.subtract(logp, rest, out=logp)
            np.multiply(c, logp, out=c)
            np.multiply(p, c.sum(axis=1, keepdims=True), out=p)
            return loss, np.multiply(np.subtract(c, p, out=grad), 1 / n, out=grad)

        if focal_gamma not in (0, 2):
            raise ValueError(f"no formula for focal_gamma={focal_gamma}")
        return focal if focal_gamma else plain

    def softmax_mse(self, logits, targets):
        n = len(logits)
        rows = np.arange(n)
        scratch, grad = np.empty_like(logits), np.empty_like(logits)

        def call():
            probs = self.softmax(logits, scratch)
            target_probs = probs[rows, targets]
            squares = np.einsum("ij,ij->i", probs, probs)
            loss = 0.5 * np.mean(squares - 2 * target_probs + 1)
            np.subtract(probs, (squares - target_probs)[:, None], out=grad)
            grad[rows, targets] -= 1
            np.multiply(grad, probs, out=grad)
            np.multiply(grad, 1 / n, out=grad)
            return loss, grad

        return call

    def sigmoid_bce(self, logits, targets):
        n = logits.size
        exps, scratch, grad = (np.empty_like(logits) for _ in range(3))

        def call():
            np.negative(np.abs(logits, out=exps), out=exps)
            np.exp(exps, out=exps)
            np.add(exps, 1, out=scratch)
            # log1p would be accurate for a loss near 0, but takes several times as long.
            loss = np.log(scratch, out=grad).sum() + np.maximum(logits, 0, out=grad).sum()
            loss = (loss - np.dot(logits, targets)) / n
            np.copyto(exps, 1, where=logits >= 0)
            np.divide(exps, scratch, out=grad)
            np.subtract(grad, targets, out=grad)
            np.multiply(grad, 1 / n, out=grad)
            return loss, grad

        return call

    def sigmoid_mse(self, logits, targets):
        n = logits.size
        probs, scratch, grad = (np.empty_like(logits) for _ in range(3))

        def call():
            self.sigmoid(logits, probs, scratch)
            np.subtract(probs, targets, out=grad)
            loss = 0.5 * np.multiply(grad, grad, out=scratch).mean()
            np.multiply(grad, probs, out=grad)
            np.subtract(1, probs, out=probs)
            np.multiply(grad, probs, out=grad)
            np.multiply(grad, 1 / n, out=grad)
            return loss, grad

        return call


class Scipy(NumpyInPlace):
    """scipy.special's stable activations; its softmax functions have no `out`."""

    library = "scipy"
    form = "special"
    distribution = "scipy"
    options = frozenset()

    @functools.cached_property
    def special(self):
        return importlib.import_module("scipy.special")

    def softmax(self, logits, out):
        return self.special.softmax(logits, axis=1)

    def sigmoid(self, logits, out, scratch):
        return self.special.expit(logits, out=out)

    def activation_call(self, name, logits):
        ufuncs = {"sigmoid": "expit", "log_sigmoid": "log_expit"}
        if name in ufuncs:
            return functools.partial(getattr(self.special, ufuncs[name]), logits, out=np.empty_like(logits))
        return functools.partial(getattr(self.special, name), logits, axis=1)

    def softmax_ce(self, logits, targets):
        n = len(logits)
        rows = np.arange(n)

        def call():
            grad = self.special.log_softmax(logits, axis=1)
            loss = -grad[rows, targets].mean()
            np.exp(grad, out=grad)
            grad[rows, targets] -= 1
            grad *= 1 / n
            return loss, grad

        return call

    def sigmoid_bce(self, logits, targets):
        n = logits.size
        scratch, grad = np.empty_like(logits), np.empty_like(logits)

        def call():
            np.subtract(1, targets, out=scratch)
            np.multiply(scratch, logits, out=scratch)
            self.special.log_expit(logits, out=grad)
            loss = np.subtract(scratch, grad, out=scratch).mean()
            self.special.expit(logits, out=grad)
            np.subtract(grad, targets, out=grad)
            np.multiply(grad, 1 / n, out=grad)
            return loss, grad

        return call


class ScikitLearn(Rival):
    """The private `_loss` classes; a weight of 1/n gives the mean without another pass."""

    library = "scikit-learn"
    form = "_loss"
    distribution = "scikit-learn"
    losses = ("sigmoid_bce", "softmax_ce")
    reuses_outputs = True

    def _prepare(self, loss_object, logits, targets):
        n = len(logits)
        arrays = {
            "y_true": targets.astype(logits.dtype),
            "raw_prediction": logits,
            "sample_weight": np.full(n, 1 / n, logits.dtype),
        }
        if self.reuses_outputs:
            arrays.update(loss_out=np.empty(n, logits.dtype), gradient_out=np.empty_like(logits))

        def call():
            losses, grad = loss_object.loss_gradient(**arrays, n_threads=THREADS)
            return losses.sum(), grad

        return call

    def softmax_ce(self, logits, targets):
        from sklearn._loss import HalfMultinomialLoss

        return self._prepare(HalfMultinomialLoss(n_classes=logits.shape[1]), logits, targets)

    def sigmoid_bce(self, logits, targets):
        from sklearn._loss import HalfBinomialLoss

        return self._prepare(HalfBinomialLoss(), logits, targets)


def import_torch():
    import torch

    torch.set_num_threads(THREADS)
    return torch


def torch_losses():
    """The four mean losses, and options of one, as a PyTorch user writes them."""
    torch = import_torch()
    functional = torch.nn.functional

    def sigmoid_mse(logits, targets):
        return 0.5 * functional.mse_loss(torch.sigmoid(logits), targets)

    def softmax_mse(logits, one_hot):
        probs = torch.softmax(logits, 1)
        return 0.5 * functional.mse_loss(probs, one_hot, reduction="sum") / len(logits)

    def softmax_ce(
        x, y, class_weight=None, ignore_index=-100, mask=None, label_smoothing=0.0, logit_scale=1.0,
        softcap=None, z_loss=0.0, focal_gamma=0.0, axis=1,
    ):  # fmt: skip
        if x.dtype == torch.float16:
            x = x.float()  # as autocast does: the sum of many losses overflows float16
        if logit_scale != 1:
            x = x * logit_scale
        if softcap:
            x = softcap * torch.tanh(x / softcap)
        if focal_gamma:
            return focal(torch.log_softmax(x, 1), y, label_smoothing, focal_gamma)
        if mask is not None:
            return (functional.cross_entropy(x, y, reduction="none") * mask).sum() / mask.sum()
        loss = functional.cross_entropy(
            x, y, weight=class_weight, ignore_index=ignore_index, label_smoothing=label_smoothing
        )
        return loss + z_loss * torch.logsumexp(x, 1).square().mean() if z_loss else loss

    def focal(logp, y, smoothing, gamma):
        if y.ndim < logp.ndim and not smoothing:
            logp = logp.gather(1, y[:, None])
            return -((1 - logp.exp()) ** gamma * logp).mean()
        k = logp.shape[1]
        q = functional.one_hot(y, k).to(logp.dtype) * (1 - smoothing) + smoothing / k if smoothing else y
        return -(q * (1 - logp.exp()) ** gamma * logp).sum(1).mean()

    sigmoid_bce = functional.binary_cross_entropy_with_logits
    return locals()


def torch_activations():
    torch = import_torch()
    return {
        "sigmoid": torch.sigmoid,
        "log_sigmoid": torch.nn.functional.logsigmoid,
        "softmax": functools.partial(torch.softmax, dim=1),
        "log_softmax": functools.partial(torch.log_softmax, dim=1),
        "logsumexp": functools.partial(torch.logsumexp, dim=1),
    }


def torch_function(loss, dtype, options):
    """A loss with options, its arrays as tensors."""
    torch = import_torch()
    options = {
        name: torch.from_numpy(value if name in AT_CALL else value.astype(dtype))
        if isinstance(value, np.ndarray)
        else value
        for name, value in options.items()
    }
    return functools.partial(torch_losses()[loss], **options)


def torch_targets(loss, logits, targets):
    """Of the one loss that has no form for class indices, one-hot."""
    torch = import_torch()
    y = torch.from_numpy(targets)
    if loss == "softmax_mse":
        y = torch.nn.functional.one_hot(y, logits.shape[1]).to(torch.from_numpy(logits).dtype)
    return y


class TorchEagerAutograd(Rival):
    library = "torch"
    form = "autograd"
    distribution = "torch"
    options = DIFFERENTIATED

    def loss_call(self, loss, logits, targets, **options):
        torch = import_torch()
        function = torch_function(loss, logits.dtype, options)
        x, y = torch.from_numpy(logits).requires_grad_(), torch_targets(loss, logits, targets)

        def call():
            value = function(x, y)
            return value.detach(), torch.autograd.grad(value, x)[0]

        return call


class TorchEagerByHand(Rival):
    """Library operations with `out=` and the gradient written out; no tensor asks for autograd."""

    library = "torch"
    form = "hand-written"
    distribution = "torch"
    activations = ACTIVATIONS
    options = frozenset({"from_probabilities"})

    def loss_call(self, loss, logits, targets, **options):
        torch = import_torch()
        return getattr(self, loss)(torch, torch.from_numpy(logits), torch.from_numpy(targets), **options)

    def activation_call(self, name, logits):
        x = import_torch().from_numpy(logits)
        function = torch_activations()[name]
        return functools.partial(function, x, out=function(x))

    def softmax_ce(self, torch, x, y, from_probabilities=False):
        n = len(x)
        grad = torch.empty_like(x)
        column = y[:, None]
        minus_one = torch.full((n, 1), -1.0, dtype=x.dtype)

        def call_from_probabilities():
            loss = -x.gather(1, column).log().mean()
            return loss, torch.mul(x, 1 / n, out=grad).scatter_add_(1, column, minus_one / n)

        def call():
            torch.log_softmax(x, 1, out=grad)
            loss = torch.nn.functional.nll_loss(grad, y)
            return loss, grad.exp_().scatter_add_(1, column, minus_one).mul_(1 / n)

        return call_from_probabilities if from_probabilities else call

    def softmax_mse(self, torch, x, y):
        n = len(x)
        probs, grad = torch.empty_like(x), torch.empty_like(x)
        column = y[:, None]

        def call():
            torch.softmax(x, 1, out=probs)
            target_probs = probs.gather(1, column)
            squares = torch.linalg.vector_norm(probs, dim=1, keepdim=True).square_()
            loss = 0.5 * (squares - 2 * target_probs + 1).mean()
            torch.sub(probs, squares - target_probs, out=grad)
            return loss, grad.mul_(probs).scatter_add_(1, column, -target_probs).mul_(1 / n)

        return call

    def sigmoid_bce(self, torch, x, y):
        n = x.numel()
        grad = torch.empty_like(x)

        def call():
            # Beyond its threshold softplus returns x: at 40 that is exact in float64 too.
            total = torch.nn.functional.softplus(x, threshold=40).sum()
            loss = (total - torch.dot(x, y)) / n
            return loss, torch.sigmoid(x, out=grad).sub_(y).mul_(1 / n)

        return call

    def sigmoid_mse(self, torch, x, y):
        probs, grad, square = (torch.empty_like(x) for _ in range(3))

        def call():
            torch.sigmoid(x, out=probs)
            torch.sub(probs, y, out=grad)
            loss = 0.5 * torch.mul(grad, grad, out=square).mean()
            grad.mul_(probs)
            return loss, grad.mul_(torch.rsub(probs, 1)).mul_(1 / x.numel())

        return call


class TorchEagerFromExp(TorchEagerByHand):
    """Softmax from max, exp and sum: fewer passes than log_softmax for rows that fit a cache."""

    form = "hand-written from exp"
    losses = ("softmax_ce",)
    activations = ()
    options = frozenset()

    def softmax_ce(self, torch, x, y):
        n = len(x)
        grad = torch.empty_like(x)
        column = y[:, None]
        share = torch.full((n, 1), -1 / n, dtype=x.dtype)

        def call():
            torch.sub(x, x.amax(1, keepdim=True), out=grad)
            target_logits = grad.gather(1, column)
            grad.exp_()
            total = grad.sum(1, keepdim=True)
            loss = (total.log() - target_logits).mean()
            return loss, grad.mul_(1 / (n * total)).scatter_add_(1, column, share)

        return call


def torch_compile(function):
    torch = import_torch()
    # A run has one specialisation per shape and dtype; past the default limits it runs eagerly.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1024
    return torch.compile(function, dynamic=False)


class TorchCompileByHand(Rival):
    """Loss and gradient in one compiled graph that writes into a reused output."""

    library = "torch.compile"
    form = "hand-written"
    distribution = "torch"
    activations = ACTIVATIONS
    options = frozenset({"from_probabilities"})
    takes_flags = True

    def loss_and_grad(self, torch, loss, dtype, options):
        return getattr(self, loss)(torch, **options)

    def loss_call(self, loss, logits, targets, **options):
        torch = import_torch()
        loss_and_grad = self.loss_and_grad(torch, loss, logits.dtype, options)
        x, y = torch.from_numpy(logits), self.targets(loss, logits, targets)
        grad = torch.empty_like(x)

        def fill(x, y, grad):
            value, result = loss_and_grad(x, y)
            grad.copy_(result)
            return value

        compiled = torch_compile(fill)

        def call():
            return compiled(x, y, grad), grad

        return call

    def targets(self, loss, logits, targets):
        return import_torch().from_numpy(targets)

    def activation_call(self, name, logits):
        x = import_torch().from_numpy(logits)
        function = torch_activations()[name]
        out = function(x)

        def fill(x, out):
            out.copy_(function(x))

        compiled = torch_compile(fill)

        def call():
            compiled(x, out)
            return out

        return call

    def softmax_ce(self, torch, from_probabilities=False):
        def loss_and_grad(x, y):
            hit = torch.arange(x.shape[1]) == y[:, None]
            if from_probabilities:
                return -x.gather(1, y[:, None]).log().mean(), (x - hit.to(x.dtype)) / len(x)
            logp = torch.log_softmax(x, 1)
            return torch.nn.functional.nll_loss(logp, y), (logp.exp() - hit.to(x.dtype)) / len(x)

        return loss_and_grad

    def softmax_mse(self, torch):
        def loss_and_grad(x, y):
            probs = torch.softmax(x, 1)
            diff = probs - (torch.arange(x.shape[1]) == y[:, None]).to(x.dtype)
            inner = (probs * diff).sum(1, keepdim=True)
            return 0.5 * (diff * diff).sum() / len(x), probs * (diff - inner) / len(x)

        return loss_and_grad

    def sigmoid_bce(self, torch):
        def loss_and_grad(x, y):
            y = y.to(x.dtype)
            loss = (x.clamp(min=0) - x * y + torch.log1p(torch.exp(-x.abs()))).mean()
            return loss, (torch.sigmoid(x) - y) / x.numel()

        return loss_and_grad

    def sigmoid_mse(self, torch):
        def loss_and_grad(x, y):
            probs = torch.sigmoid(x)
            diff = probs - y
            return 0.5 * (diff * diff).mean(), diff * probs * (1 - probs) / x.numel()

        return loss_and_grad


class TorchCompileFromExp(TorchCompileByHand):
    """Softmax from max, exp and sum, which the compiler fuses into fewer passes for short rows."""

    form = "hand-written from exp"
    losses = ("softmax_ce",)
    activations = ()
    options = frozenset()

    def softmax_ce(self, torch):
        def loss_and_grad(x, y):
            n, k = x.shape
            shifted = x - x.amax(1, keepdim=True)
            exps = shifted.exp()
            total = exps.sum(1, keepdim=True)
            loss = (total.log() - shifted.gather(1, y[:, None])).mean()
            hit = torch.arange(k) == y[:, None]
            return loss, exps * (1 / (n * total)) - torch.where(hit, 1 / n, 0.0)

        return loss_and_grad


class TorchCompileAutograd(TorchCompileByHand):
    """The same with the gradient that PyTorch finds."""

    form = "autograd"
    activations = ()
    options = DIFFERENTIATED
    takes_flags = False

    def loss_and_grad(self, torch, loss, dtype, options):
        grad_and_value = torch.func.grad_and_value(torch_function(loss, dtype, options))

        def loss_and_grad(x, y):
            grad, value = grad_and_value(x, y)
            return value, grad

        return loss_and_grad

    def targets(self, loss, logits, targets):
        return torch_targets(loss, logits, targets)


def import_jax():
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    # Handing the work to another thread only adds its latency when every call is waited for.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return jax


class JaxValueAndGrad(Rival):
    """jit of value_and_grad; last call's gradient is donated so that its memory is reused."""

    library = "JAX"
    form = "value_and_grad"
    distribution = "jax"
    options = DIFFERENTIATED
    takes_flags = True

    def loss_and_grad(self, jax, loss):
        return jax.value_and_grad(jax_losses(jax)[loss])

    def loss_call(self, loss, logits, targets, **options):
        jax = import_jax()
        function = self.loss_and_grad(jax, loss)
        constants = {name: value for name, value in options.items() if not isinstance(value, np.ndarray)}

        def replace(x, y, arrays, old_grad):
            return function(x, y, **arrays, **constants)

        compiled = jax.jit(replace, donate_argnums=3, keep_unused=True)
        x = jax.numpy.asarray(logits)
        y = jax.numpy.asarray(targets.astype(np.int32) if targets.dtype.kind == "i" else targets)
        arrays = {
            name: jax.numpy.asarray(value if name in AT_CALL else value.astype(logits.dtype))
            for name, value in options.items()
            if name not in constants
        }
        grad = jax.numpy.zeros_like(x)

        def call():
            nonlocal grad
            value, grad = compiled(x, y, arrays, grad)
            grad.block_until_ready()
            return value, grad

        return call

    def activation_call(self, name, logits):
        jax = import_jax()
        function = getattr(jax.nn, name)
        along = {} if name in ("sigmoid", "log_sigmoid") else {"axis": 1}
        x = jax.numpy.asarray(logits)
        compiled = jax.jit(lambda x, old: function(x, **along), donate_argnums=1, keep_unused=True)
        out = function(x, **along)

        def call():
            nonlocal out
            out = compiled(x, out)
            return out.block_until_ready()

        return call


def jax_losses(jax):
    """As optax writes them, and options of one as its users add them."""
    jnp = jax.numpy

    def softmax_ce(
        x, y, class_weight=None, ignore_index=None, mask=None, label_smoothing=0.0, logit_scale=1.0,
        softcap=None, z_loss=0.0, focal_gamma=0.0, axis=1,
    ):  # fmt: skip
        if x.dtype == jnp.float16:
            x = x.astype(jnp.float32)
        if logit_scale != 1:
            x = x * logit_scale
        if softcap:
            x = softcap * jnp.tanh(x / softcap)
        if y.ndim == x.ndim or (focal_gamma and label_smoothing):
            k = x.shape[1]
            if label_smoothing:
                y = (1 - label_smoothing) * jax.nn.one_hot(y, k, dtype=x.dtype) + label_smoothing / k
            logp = jax.nn.log_softmax(x, axis=1)
            if focal_gamma:
                y = y * (1 - jnp.exp(logp)) ** focal_gamma
            return -(y * logp).sum(axis=1).mean()

        weights = mask
        if class_weight is not None:
            weights = class_weight[y]
        elif ignore_index is not None:
            weights = y != ignore_index
            y = jnp.where(weights, y, 0)
        lse = jax.nn.logsumexp(x, axis=1)
        target_logits = jnp.take_along_axis(x, y[:, None], axis=1)[:, 0]
        losses = lse - target_logits
        if label_smoothing:
            losses = losses + label_smoothing * (target_logits - x.mean(axis=1))
        if focal_gamma:
            losses = (1 - jnp.exp(-losses)) ** focal_gamma * losses
        if z_loss:
            losses = losses + z_loss * lse**2
        return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()

    def sigmoid_bce(x, y):
        return -(y * jax.nn.log_sigmoid(x) + (1 - y) * jax.nn.log_sigmoid(-x)).mean()

    def sigmoid_mse(x, y):
        return 0.5 * jnp.square(jax.nn.sigmoid(x) - y).mean()

    def softmax_mse(x, y):
        diff = jax.nn.softmax(x, axis=1) - jax.nn.one_hot(y, x.shape[1], dtype=x.dtype)
        return 0.5 * jnp.square(diff).sum() / len(x)

    return locals()


class JaxByHand(JaxValueAndGrad):
    form = "hand-written"
    activations = ACTIVATIONS
    options = frozenset({"from_probabilities"})

    def loss_and_grad(self, jax, loss):
        jnp = jax.numpy

        def softmax_ce(x, y, from_probabilities=False):
            n = len(x)
            rows = jnp.arange(n)
            if from_probabilities:
                return -jnp.log(x[rows, y]).mean(), (x / n).at[rows, y].add(-1 / n)
            shifted = x - x.max(axis=1, keepdims=True)
            exps = jnp.exp(shifted)
            total = exps.sum(axis=1, keepdims=True)
            value = jnp.mean(jnp.log(total[:, 0]) - shifted[rows, y])
            return value, (exps * (1 / (n * total))).at[rows, y].add(-1 / n)

        def softmax_mse(x, y):
            probs = jax.nn.softmax(x, axis=1)
            diff = probs - jax.nn.one_hot(y, x.shape[1], dtype=x.dtype)
            inner = (probs * diff).sum(axis=1, keepdims=True)
            return 0.5 * jnp.square(diff).sum() / len(x), probs * (diff - inner) / len(x)

        def sigmoid_bce(x, y):
            value = (jnp.maximum(x, 0) - x * y + jnp.log1p(jnp.exp(-jnp.abs(x)))).mean()
            return value, (jax.nn.sigmoid(x) - y) / x.size

        def sigmoid_mse(x, y):
            probs = jax.nn.sigmoid(x)
            diff = probs - y
            return 0.5 * jnp.square(diff).mean(), diff * probs * (1 - probs) / x.size

        return locals()[loss]


@functools.cache
def numba_kernels():
    """Fused loops, compiled once per dtype; each writes the gradient and returns the loss."""
    import numba

    # a parallel kernel called with one thread would only add its overhead
    jit = numba.njit(fastmath=True, error_model="numpy", parallel=THREADS > 1)
    prange = numba.prange if THREADS > 1 else range

    @numba.njit(fastmath=True, error_model="numpy")
    def row_softmax(x, out):
        """Writes exp(x - max) and returns max and the sum."""
        top = x[0]
        for j in range(x.size):
            top = max(top, x[j])
        total = x[0] - x[0]
        for j in range(x.size):
            e = np.exp(x[j] - top)
            out[j] = e
            total += e
        return top, total

    @jit
    def softmax_ce(x, y, out):
        n, k = x.shape
        loss = 0.0
        for i in prange(n):
            top, total = row_softmax(x[i], out[i])
            loss += math.log(total) + (top - x[i, y[i]])
            scale = x.dtype.type(1) / (total * x.dtype.type(n))
            for j in range(k):
                out[i, j] *= scale
            out[i, y[i]] -= x.dtype.type(1 / n)
        return loss / n

    @jit
    def softmax_mse(x, y, out):
        n, k = x.shape
        loss = 0.0
        share = x.dtype.type(1 / n)
        for i in prange(n):
            _, total = row_softmax(x[i], out[i])
            scale = x.dtype.type(1) / total
            squares = total - total
            for j in range(k):
                out[i, j] *= scale
                squares += out[i, j] * out[i, j]
            p = out[i, y[i]]
            loss += 0.5 * (squares - 2 * p + 1)
            inner = squares - p
            for j in range(k):
                out[i, j] *= (out[i, j] - inner) * share
            out[i, y[i]] -= p * share
        return loss / n

    @jit
    def sigmoid_bce(x, y, out):
        one = x.dtype.type(1)
        share = x.dtype.type(1 / x.size)
        loss = 0.0
        for i in prange(x.size):
            out[i] = np.exp(-abs(x[i]))
        # No branch on the sign, which would be mispredicted half of the time.
        for i in prange(x.size):
            positive = x.dtype.type(x[i] >= 0)
            total = one + out[i]
            target = x.dtype.type(y[i])
            loss += np.log(total) + x[i] * (positive - target)
            out[i] = ((positive + (one - positive) * out[i]) / total - target) * share
        return loss / x.size

    @jit
    def sigmoid_mse(x, y, out):
        one = x.dtype.type(1)
        share = x.dtype.type(1 / x.size)
        loss = 0.0
        for i in prange(x.size):
            p = one / (one + np.exp(-x[i]))
            diff = p - y[i]
            loss += diff * diff
            out[i] = diff * p * (one - p) * share
        return 0.5 * loss / x.size

    return locals()


class Numba(Rival):
    library = "numba"
    form = "fastmath loops"
    distribution = "numba"
    takes_flags = True
    reuses_outputs = True

    def loss_call(self, loss, logits, targets):
        kernel = numba_kernels()[loss]
        kept = np.empty_like(logits)

        def call():
            grad = kept if self.reuses_outputs else np.empty_like(logits)
            return kernel(logits, targets, grad), grad

        return call


RIVALS = (
    NumpyTextbook(),
    NumpyInPlace(),
    Scipy(),
    ScikitLearn(),
    TorchEagerAutograd(),
    TorchEagerByHand(),
    TorchEagerFromExp(),
    TorchCompileAutograd(),
    TorchCompileByHand(),
    TorchCompileFromExp(),
    JaxValueAndGrad(),
    JaxByHand(),
    Numba(),
)
LIBRARIES = tuple(dict.fromkeys(rival.library for rival in RIVALS))
