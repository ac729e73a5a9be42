"""Times LinearLoss, and takes its memory, beside the same layer and loss in other libraries.

    python bench/linear.py                             every contender (about 20 minutes)
    python bench/linear.py --quick                     a small problem, nothing stored
    python bench/linear.py --contenders "numpy" "LinearLoss, 128 MiB"
    python bench/linear.py --page docs/larger.md       also rewrite the page's table

Loss and gradients by hidden, weight and bias of a linear layer under softmax + cross-entropy, float32, class
indices, reduction `mean`, one thread. Times are CPU seconds of this process, all contenders interleaved, the
least of several rounds: on a machine that has other work, the least is what the work itself takes. Memory is
what the resident set grows by at its peak beyond the results, in a process of its own for each contender.
Results are checked before they are timed, and merged into bench/results/linear-<cpu>-<level>.csv.
"""

import harness  # before numpy  # isort: skip

import argparse
import importlib.metadata
import importlib.util
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import stableloss

ROWS, FEATURES = 2048, 512
CLASSES = (32000, 131072)
QUICK = (256, 64, (2000,))
ROUNDS = 5
# Rows that scan, and torch where it is told, take at a time.
CHUNK = 256
# Of the largest entry: sums of up to 131072 float32 products, in any order.
TOLERANCE = 1e-4

PRODUCTS = "three products alone"
KEY = ("n", "d", "k", "contender")
COLUMNS = (
    *KEY, "cpu_seconds", "cpu_seconds_median", "ratio_to_products", "extra_mib", "rounds", "status",
    "library_version", "stableloss_version", "numpy_version", "threads", "level", "cpu",
)  # fmt: skip


def problem(n, d, k):
    """A trained network's: confident rows among others, but none with a gradient below the smallest normal
    number. With such, products take twenty times as long; LinearLoss alone leaves them out."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((n, d), dtype=np.float32)
    weight = rng.standard_normal((k, d), dtype=np.float32) * np.float32(0.05)
    targets = rng.integers(0, k, n)
    hidden += 50 * weight[targets] * rng.random((n, 1), dtype=np.float32)
    return hidden, weight, rng.standard_normal(k, dtype=np.float32), targets


# ---- contenders: what a training loop does once, and a call that gives loss and gradients ---------


def linear_loss(mib, ignored=False):
    def prepare(hidden, weight, bias, targets):
        head = stableloss.LinearLoss(stableloss.softmax_ce, mib << 20)
        if ignored:
            targets = np.where(np.arange(len(targets)) % 2, -100, targets)

        def call():
            value, grads = head.value_and_grad(hidden, weight, targets, bias)
            return value, *grads

        return call

    return prepare


def products(hidden, weight, bias, targets):
    def call():
        logits = hidden @ weight.T
        return 0.0, logits @ weight, logits.T @ hidden, np.zeros_like(bias)

    return call


def numpy_textbook(hidden, weight, bias, targets):
    """Every array reused that can be."""
    rows, n = np.arange(len(hidden)), len(hidden)

    def call():
        logits = hidden @ weight.T
        logits += bias
        logits -= logits.max(axis=1, keepdims=True)
        of_target = logits[rows, targets]
        np.exp(logits, out=logits)
        total = logits.sum(axis=1)
        loss = np.mean(np.log(total) - of_target)
        logits /= total[:, None] * n
        logits[rows, targets] -= 1 / n
        return loss, logits @ weight, logits.T @ hidden, logits.sum(axis=0)

    return call


def numpy_with_loss(hidden, weight, bias, targets):
    """The same with stableloss's loss, on all the logits."""

    def call():
        logits = hidden @ weight.T
        logits += bias
        loss, grad = stableloss.softmax_ce.value_and_grad(logits, targets, out=logits)
        return loss, grad @ weight, grad.T @ hidden, grad.sum(axis=0)

    return call


def torch_call(hidden, weight, bias, targets, loss_of):
    import torch

    torch.set_num_threads(harness.THREADS)
    arrays = [torch.from_numpy(array).requires_grad_() for array in (hidden, weight, bias)]
    labels = torch.from_numpy(targets)

    def call():
        loss = loss_of(*arrays, labels)
        grads = torch.autograd.grad(loss, arrays)
        return float(loss.detach()), *(grad.numpy() for grad in grads)

    return call


def torch_plain(hidden, weight, bias, targets):
    from torch.nn import functional

    def loss_of(h, w, b, y):
        return functional.cross_entropy(functional.linear(h, w, b), y)

    return torch_call(hidden, weight, bias, targets, loss_of)


def torch_chunked(**settings):
    def prepare(hidden, weight, bias, targets):
        import torch
        from torch.nn import functional

        options = torch.nn.LinearCrossEntropyOptions(**settings)

        def loss_of(h, w, b, y):
            return functional.linear_cross_entropy(h, w, y, linear_bias=b, options=options)

        return torch_call(hidden, weight, bias, targets, loss_of)

    return prepare


def jax_call(hidden, weight, bias, targets, loss_of):
    import jax

    arguments = [jax.numpy.asarray(array) for array in (hidden, weight, bias, targets)]
    compiled = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1, 2))).lower(*arguments).compile()

    def call():
        loss, grads = jax.block_until_ready(compiled(*arguments))
        return float(loss), *(np.asarray(grad) for grad in grads)

    return call


def jax_losses(h, w, b, y):
    import jax

    logits = h @ w.T + b
    of_target = jax.numpy.take_along_axis(logits, y[:, None], 1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - of_target).sum()


def jax_plain(hidden, weight, bias, targets):
    return jax_call(hidden, weight, bias, targets, lambda h, w, b, y: jax_losses(h, w, b, y) / len(y))


def jax_scan(hidden, weight, bias, targets):
    """Chunks of rows whose logits are computed again for the gradient."""
    import jax

    def loss_of(h, w, b, y):
        losses = jax.checkpoint(jax_losses)

        def step(total, rows):
            return total + losses(rows[0], w, b, rows[1]), None

        chunks = h.reshape(-1, CHUNK, h.shape[1]), y.reshape(-1, CHUNK)
        return jax.lax.scan(step, jax.numpy.float32(0), chunks)[0] / len(y)

    return jax_call(hidden, weight, bias, targets, loss_of)


OURS = "LinearLoss, 128 MiB"
HALF = "LinearLoss, 128 MiB, half the rows ignored"
# The package that each needs, and what prepares it.
CONTENDERS = {
    OURS: ("stableloss", linear_loss(128)),
    "LinearLoss, 64 MiB": ("stableloss", linear_loss(64)),
    "LinearLoss, 32 MiB": ("stableloss", linear_loss(32)),
    HALF: ("stableloss", linear_loss(128, ignored=True)),
    PRODUCTS: ("numpy", products),
    "numpy": ("numpy", numpy_textbook),
    "numpy, loss of stableloss": ("numpy", numpy_with_loss),
    "torch": ("torch", torch_plain),
    "torch linear_cross_entropy, auto": ("torch", torch_chunked()),
    f"torch linear_cross_entropy, {CHUNK} rows": ("torch", torch_chunked(batch_chunk_size=CHUNK)),
    f"torch linear_cross_entropy, {CHUNK} rows, compact": (
        "torch",
        torch_chunked(batch_chunk_size=CHUNK, acc_policy="compact"),
    ),
    "JAX jit": ("jax", jax_plain),
    f"JAX scan with remat, {CHUNK} rows": ("jax", jax_scan),
}
UNCHECKED = (PRODUCTS, HALF)


def available(name):
    package = CONTENDERS[name][0]
    if not importlib.util.find_spec(package):
        return False
    if "linear_cross_entropy" in name:
        import torch

        return hasattr(torch.nn.functional, "linear_cross_entropy")
    return True


# ---- measurement ---------------------------------------------------------------------------------


def require_agreement(name, results, expected):
    for got, want in zip(results, expected, strict=True):
        error = np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want))
        if not error <= TOLERANCE:
            raise ValueError(f"{name} is off by {error:.2g}")


def time_all(calls, rounds):
    """CPU seconds of each call in each round, in random order within a round."""
    order = random.Random(0)
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            start = time.process_time()
            calls[name]()
            samples[name].append(time.process_time() - start)
    return samples


def status(field):
    """A line of this process's status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {field} in /proc/self/status")


def extra_memory(name, n, d, k):
    """MiB by which the resident set grows during a call beyond its results, in this process."""
    prepare = CONTENDERS[name][1]
    prepare(*problem(CHUNK, d, 1000))()  # loads libraries and allocates their buffers
    call = prepare(*problem(n, d, k))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    _, *grads = call()
    return status("VmHWM") - before - sum(grad.nbytes for grad in grads) / 2**20


def extra_memory_apart(name, shape):
    command = [sys.executable, __file__, "--memory", name, *map(str, shape)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout)


def measure(shape, names, rounds):
    """A row of the results for each contender."""
    data = problem(*shape)
    expected = numpy_with_loss(*data)()
    calls, failed = {}, {}
    for name in names:
        # whatever goes wrong inside another library takes out that library alone
        try:
            calls[name] = CONTENDERS[name][1](*data)
            results = calls[name]()
            if name not in UNCHECKED:
                require_agreement(name, results, expected)
        except Exception as error:
            calls.pop(name, None)
            failed[name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    samples = time_all(calls, rounds)
    for name in names:
        row = dict.fromkeys(COLUMNS, "")
        row |= dict(zip(KEY, (*map(str, shape), name), strict=True))
        row |= {"status": failed.get(name, "ok"), "level": stableloss.cpu_level(), "cpu": harness.cpu_model()}
        row |= {"threads": str(harness.THREADS), "stableloss_version": stableloss.__version__}
        row |= {"numpy_version": np.__version__}
        row["library_version"] = importlib.metadata.version(CONTENDERS[name][0])
        if name in samples:
            row["cpu_seconds"] = f"{min(samples[name]):.3f}"
            row["cpu_seconds_median"] = f"{np.median(samples[name]):.3f}"
            row["rounds"] = str(rounds)
            if PRODUCTS in samples:
                row["ratio_to_products"] = f"{min(samples[name]) / min(samples[PRODUCTS]):.3f}"
            row["extra_mib"] = f"{extra_memory_apart(name, shape):.0f}"
        yield row


# ---- the table -----------------------------------------------------------------------------------


def table(rows):
    """A line for each contender, the numbers of classes side by side."""
    by_name, sizes = {}, list(dict.fromkeys(row["k"] for row in rows))
    for row in rows:
        by_name.setdefault(row["contender"], {})[row["k"]] = row
    head = ["", *(cell for k in sizes for cell in (f"{k} classes, CPU s", "÷ products", "extra MiB"))]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for name, found in by_name.items():
        cells = [f"**{name}**" if name == OURS else name]
        for k in sizes:
            row = found.get(k, {})
            seconds, ratio = row.get("cpu_seconds"), row.get("ratio_to_products")
            cells += [f"{float(seconds):.2f}" if seconds else "-", f"{float(ratio):.2f}" if ratio else "-"]
            cells += [row.get("extra_mib") or "-"]
        lines.append("| " + " | ".join(cells) + " |")
    last = rows[-1]
    libraries = dict.fromkeys(
        f"{CONTENDERS[row['contender']][0]} {row['library_version']}" for row in rows if row["status"] == "ok"
    )
    where = (
        f"{last['n']} rows of {last['d']} features, float32, one thread; CPU seconds and what a call takes "
        f"beside its results. {last['cpu']}, CPU level `{last['level']}`, {', '.join(libraries)}."
    )
    return "\n".join([where, "", *lines])


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="a small problem, nothing stored")
    parser.add_argument("--page", type=Path, metavar="FILE", help="rewrite the table in FILE")
    parser.add_argument("--memory", nargs=4, metavar=("CONTENDER", "N", "D", "K"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse_arguments()
    harness.use_cpus(harness.THREADS)
    if options.memory:
        name, *shape = options.memory
        print(extra_memory(name, *map(int, shape)))
        return
    n, d, classes = QUICK if options.quick else (ROWS, FEATURES, options.classes)
    names = [name for name in options.contenders if available(name)]
    path = harness.results_path("linear-", stableloss.cpu_level())
    order = [(str(n), str(d), str(k), name) for k in classes for name in CONTENDERS]
    measured = []
    for k in classes:
        rows = list(measure((n, d, k), names, options.rounds))
        measured += rows
        if not options.quick:
            harness.merge_rows(path, COLUMNS, rows, lambda row: tuple(row[name] for name in KEY), order)
    print(table(measured))
    for row in measured:
        if row["status"] != "ok":
            print(f"- not timed: {row['contender']}, {row['k']} classes: {row['status']}")
    if options.page:
        harness.rewrite_part(options.page, "linear", table(harness.read_rows(path)))


if __name__ == "__main__":
    main()
