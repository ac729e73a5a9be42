"""Newton's method through HIPS autograd: logistic regression on scikit-learn's breast-cancer data.

autograd differentiates the gradient of the loss by its exact product of the Hessian and a vector, which
is all that the conjugate gradients inside each Newton step need. The figure compares with gradient descent.
"""

from pathlib import Path

import autograd
import autograd.numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from stableloss.adapters.autograd import sigmoid_bce

x, y = load_breast_cancer(return_X_y=True)
x = np.column_stack([StandardScaler().fit_transform(x), np.ones(len(x))])


def objective(w):
    return sigmoid_bce(x @ w, y) + 0.5e-3 * np.sum(w**2)


gradient = autograd.grad(objective)
hessian_times = autograd.hessian_vector_product(objective)


def newton_direction(w, gradient, tolerance=1e-10):
    """Solve H d = -gradient by conjugate gradients."""
    d, residual = np.zeros_like(w), -gradient
    p, square = residual, residual @ residual
    while square > tolerance**2 * (gradient @ gradient):
        hp = hessian_times(w, p)
        step = square / (p @ hp)
        d, residual = d + step * p, residual - step * hp
        square, previous = residual @ residual, square
        p = residual + square / previous * p
    return d


def minimise(label, direction, steps):
    w, history = np.zeros(x.shape[1]), []
    for _ in tqdm(range(steps), desc=label):
        g = gradient(w)
        history.append(np.linalg.norm(g))
        w = w + direction(w, g)
    print(f"{label}: objective {objective(w):.6f}, gradient norm {history[-1]:.1e}")
    return history


methods = {"gradient descent": (lambda w, g: -0.5 * g, 1000), "Newton": (newton_direction, 12)}
axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
for label, (direction, steps) in methods.items():
    axes.loglog(range(1, steps + 1), minimise(label, direction, steps), label=label)
axes.set(xlabel="step", ylabel="norm of the gradient")
axes.legend()
figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
