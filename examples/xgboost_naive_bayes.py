"""XGBoost that starts from a naive Bayes classifier, whose log probabilities are far below 0.

The margins to start from are the joint log probabilities log p(x, class) of a Gaussian naive Bayes on
64 pixels, none above -104. XGBoost's softmax subtracts the largest from them only if that is above 0, so
all exponentials round to 0, and no tree has a leaf but 0. With the gradient from stableloss it learns.
(Subtracting the largest margin of each row beforehand would help as well, if one knew.)
"""

from pathlib import Path

import numpy as np
import xgboost as xgb
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from tqdm import trange

import stableloss as sl
from stableloss.adapters.xgboost import objective

ROUNDS = 100
PARAMS = {"objective": "multi:softprob", "num_class": 10, "max_depth": 3, "nthread": 1}
OBJECTIVES = {
    "XGBoost's own": None,
    "stableloss, XGBoost's Hessian": objective(sl.softmax_ce, hessian="xgboost"),
    "stableloss, exact Hessian": objective(sl.softmax_ce),
}
STYLES = ({"color": "#d55e00"}, {"color": "#0072b2", "linestyle": "--"}, {"color": "#009e73"})

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x, y, stratify=y, random_state=0)
bayes = GaussianNB(var_smoothing=0.01).fit(x, y)
train = xgb.DMatrix(x, y, base_margin=bayes.predict_joint_log_proba(x))
test = xgb.DMatrix(x_test, y_test, base_margin=bayes.predict_joint_log_proba(x_test))
print(f"largest margin {train.get_base_margin().max():.1f}, naive Bayes {bayes.score(x_test, y_test):.1%}")

figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
loss_axes, accuracy_axes = figure.subplots(1, 2)
for (name, function), style in zip(OBJECTIVES.items(), STYLES, strict=True):
    booster = xgb.Booster(PARAMS, [train])
    history = []
    for i in trange(ROUNDS, desc=f"{name:29}", unit="tree"):
        booster.update(train, i, fobj=function)
        margins = booster.predict(test, output_margin=True)
        history.append((sl.softmax_ce(margins, y_test), np.mean(margins.argmax(axis=1) == y_test)))
    loss, accuracy = np.transpose(history)
    print(f"{name:29}  held-out loss {loss[-1]:.3f}, accuracy {accuracy[-1]:.1%}")
    loss_axes.plot(loss, label=name, **style)
    accuracy_axes.plot(100 * accuracy, label=name, **style)
loss_axes.set(ylabel="held-out cross-entropy (nats)", ylim=(0, None), xlabel="round")
accuracy_axes.set(ylabel="held-out accuracy (%)", xlabel="round")
loss_axes.legend(loc="lower left")
for axes in (loss_axes, accuracy_axes):
    axes.grid(color="#dddddd")
figure.savefig(Path(__file__).with_suffix(".png"))
