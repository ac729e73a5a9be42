"""A thinc model on scikit-learn's digits, trained with the true cross-entropy.

thinc's own CategoricalCrossentropy has the same gradient but reports its squared length; the table
shows both numbers.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from thinc.api import Adam, CategoricalCrossentropy, Relu, Softmax, chain, fix_random_seed
from tqdm import tqdm

from stableloss.adapters import thinc as stable

fix_random_seed(0)
x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split((x / 16).astype(np.float32), y, random_state=0)
model = chain(Relu(nO=64), Softmax(nO=10))
model.initialize(X=x, Y=np.eye(10, dtype=np.float32)[y])
loss_calc, thinc_calc, optimizer = stable.CategoricalCrossentropy(), CategoricalCrossentropy(), Adam(0.003)

rows = []
for epoch in tqdm(range(20), unit="epoch"):
    for x_batch, y_batch in model.ops.multibatch(32, x, y, shuffle=True):
        guesses, backprop = model.begin_update(x_batch)
        grad, _ = loss_calc(guesses, y_batch)
        backprop(grad)
        model.finish_update(optimizer)
    guesses = model.predict(x)
    accuracy = np.mean(model.predict(x_test).argmax(axis=1) == y_test)
    rows.append((epoch + 1, loss_calc.get_loss(guesses, y), thinc_calc.get_loss(guesses, y), accuracy))

print("epoch  cross-entropy  thinc reports  held-out accuracy")
for epoch, loss, reported, accuracy in rows[::3]:
    print(f"{epoch:5} {loss:14.4f} {reported:14.2e} {accuracy:18.1%}")
