"""Time calls of one row in two environments, in turn, and compare: what a build costs beside another.

python .ci/tools/small_calls.py PYTHON BASELINE [LIMIT]    fails if PYTHON takes more than LIMIT times as long
"""

import statistics
import subprocess
import sys

ROUNDS = 15
CODE = """
import timeit
import numpy as np
import stableloss as sl
logits, targets, out = np.zeros((1, 10), np.float32), np.zeros(1, np.int64), np.empty((1, 10), np.float32)
call = lambda: sl.softmax_ce.value_and_grad(logits, targets, out=out)
timer = timeit.Timer(call)
timer.timeit(20_000)
print(min(timer.repeat(20, 5_000)) / 5_000)
"""


def seconds(python):
    # isolated: from the root, Python would find the source folder
    run = subprocess.run([python, "-I", "-c", CODE], check=True, capture_output=True, text=True)
    return float(run.stdout)


def main():
    python, baseline = sys.argv[1:3]
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")
    pairs = [(seconds(python), seconds(baseline)) for _ in range(ROUNDS)]
    ours, theirs = (min(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"1x10 float32: {ours * 1e6:.3f} us against {theirs * 1e6:.3f} us, median ratio {ratio:.2f}")
    sys.exit(ratio > limit)


if __name__ == "__main__":
    main()
