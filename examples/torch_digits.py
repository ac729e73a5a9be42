"""A PyTorch network on scikit-learn's digits whose loss, on the CPU, is computed by stableloss.

The network is trained until it is certain of most digits. The table then compares what the two libraries
make of the same logits: PyTorch's loss is a difference of rounded numbers, so small losses and the
gradients at their true classes are exactly 0.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import stableloss as sl
from stableloss.adapters.torch import differentiable, softmax_ce

torch.manual_seed(0)
torch.set_num_threads(1)  # the batches are small
x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split((x / 16).astype(np.float32), y, random_state=0)
x, x_test, y = torch.from_numpy(x), torch.from_numpy(x_test), torch.from_numpy(y)
net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
for _ in (progress := tqdm(range(40), unit="epoch")):
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        loss = softmax_ce(net(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
    progress.set_postfix(loss=f"{loss.item():.2e}")
print(f"held-out accuracy {np.mean(net(x_test).argmax(dim=1).numpy() == y_test):.1%}")

print(f"{'':12} {'mean loss':>12} {'rows of loss 0':>15} {'true-class gradients 0':>23}")
losses = {
    "PyTorch": torch.nn.CrossEntropyLoss(reduction="none"),
    "stableloss": differentiable(sl.SoftmaxCE(reduction="none")),
}
for name, criterion in losses.items():
    logits = net(x).detach().requires_grad_()
    loss = criterion(logits, y)
    loss.sum().backward()
    zero_gradients = (logits.grad[torch.arange(len(y)), y] == 0).sum().item()
    zero_losses = (loss == 0).sum().item()
    print(f"{name:12} {loss.double().mean():12.4e} {zero_losses:15} {zero_gradients:23}")
