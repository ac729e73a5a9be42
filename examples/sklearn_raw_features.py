"""scikit-learn's MLPClassifier and StableMLPClassifier on features that nobody has scaled.

The breast-cancer data have features up to 4254. The first outputs of a network on them are hundreds off,
which MLPClassifier, whose loss ends at 36, does not see: lbfgs finds a gradient but no change of the loss
along it, and stops. Both classifiers are trained from ten random starts on the data times 0.001 to 1000.

(Scaling the features remains good advice: on small ones both do better, and the same.)
"""

import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from stableloss.adapters.sklearn import StableMLPClassifier

SCALES = 10.0 ** np.arange(-3, 4)
SEEDS = range(10)
COLORS = {MLPClassifier: "#d55e00", StableMLPClassifier: "#009e73"}

x, y = load_breast_cancer(return_X_y=True)
x, x_test, y, y_test = train_test_split(x, y, stratify=y, random_state=0)
accuracy = {cls: np.empty((len(SCALES), len(SEEDS))) for cls in COLORS}
iterations = {cls: np.empty((len(SCALES), len(SEEDS))) for cls in COLORS}
warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are enough to tell them apart
with threadpool_limits(1):  # the matrices are small
    for i in tqdm(range(len(SCALES)), unit="scale"):
        for j in SEEDS:
            for cls in COLORS:
                model = cls((32,), solver="lbfgs", max_iter=100, random_state=j).fit(SCALES[i] * x, y)
                accuracy[cls][i, j] = model.score(SCALES[i] * x_test, y_test)
                iterations[cls][i, j] = model.n_iter_

print(f"{'features':>9}" + "".join(f"{cls.__name__:>30}" for cls in COLORS))
for i, scale in enumerate(SCALES):
    cells = [f"{accuracy[cls][i].mean():.1%}, {iterations[cls][i].mean():.0f} iterations" for cls in COLORS]
    print(f"{f'x {scale:g}':>9}" + "".join(f"{cell:>30}" for cell in cells))

figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
axes = figure.subplots()
for cls, shift in zip(COLORS, (0.9, 1.1), strict=True):
    axes.plot(shift * SCALES, 100 * accuracy[cls], "o", color=COLORS[cls], alpha=0.35, markersize=4)
    axes.plot(SCALES, 100 * accuracy[cls].mean(axis=1), color=COLORS[cls], label=cls.__name__)
axes.set(xscale="log", xlabel="factor on the raw features", ylabel="held-out accuracy (%)", ylim=(0, 102))
axes.set_title("Breast cancer, lbfgs, 32 hidden units: ten starts and their mean")
axes.grid(color="#dddddd")
axes.legend(loc="lower left")
figure.savefig(Path(__file__).with_suffix(".png"))
