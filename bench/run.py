"""Times value + gradient of every loss against other libraries and against a copy.

    python bench/run.py --compile            fill torch.compile's cache (10 minutes, on a busy machine too)
    python bench/run.py                      every case (10 minutes then, on a quiet machine)
    python bench/run.py --loss softmax_ce    one loss; the others keep the results that they have
    python bench/run.py --quick              a few small cases and rounds, results kept apart
    STABLELOSS_NUM_THREADS=2 python bench/run.py     two threads for every library, large cases (5 minutes)

All contenders of a case run interleaved in this process, in random order in every round. A sample
is enough calls to last 2 ms; ratios are taken within a round, and the median over rounds is
reported. After three rounds only the rivals within twice the fastest one's time go on, to at least
15 rounds. A rival's loss and gradient are compared with stableloss's before it is timed. stableloss is
timed in other forms as well: the loss alone, in place, into a new array and, where it has several
threads, with one. Results are merged case by case into bench/results/<cpu>-<level>.csv, from which
report.py makes README's table and the figure: a run that is cut short loses only the case that it was
at. torch.compile keeps what it has compiled on disk, for each number of threads apart.
"""

import harness  # before numpy  # isort: skip

import argparse
import functools
import math
import platform
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
from cases import DTYPES, KEY, LOSSES, all_cases
from report import COPY, EXP, MULTIPLY, OURS, OUT, case_key, report, results_path
from rivals import LIBRARIES, RIVALS

import stableloss

QUICK_LOGITS = range(10_000, 70_000)
# From here stableloss shares a call out.
THREADED_LOGITS = 262144

# A rival this much slower than the fastest is not the best one, whatever the noise.
OUT_OF_REACH = 2

# Rivals add the loss in the working precision and in a few lanes, which was seen to cost 1e-5 in
# float32 and 1e-12 in float64 for 1e7 terms; the tolerance leaves a factor of ten.
LOSS_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
# A sum of 128256 exponentials is off by up to 1e-5 (float32), and every gradient entry of the row
# inherits that.
GRAD_TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
# p - 1 and 1 - p are rounded to eps of 1, whatever is left of the difference, so that small entries
# are only good to some eps of the largest one.
GRAD_EPS_OF_LARGEST = 16

TIMES = ("ns_per_logit", "ns_p20", "ns_p80")
RATIOS = ("ratio_to_copyto", "ratio_to_multiply", "ratio_to_stableloss")
COLUMNS = (
    *KEY, "library", "form", *TIMES, *RATIOS, "rounds", "calls_per_sample", "status", "loss_error",
    "grad_error", "library_version", "stableloss_version", "numpy_version", "python_version",
    "threads", "level", "cpu",
)  # fmt: skip


@dataclass
class Contender(harness.Timed):
    library: str = ""
    form: str = ""
    version: str = ""
    status: str = "ok"
    loss_error: float = math.nan
    grad_error: float = math.nan
    rival: bool = False


def error_against(reference, result, dtype):
    """Relative error of the loss, and the gradient's largest error in units of its tolerance."""
    loss, grad = result
    expected_loss, expected = reference
    loss_error = abs(float(loss) - expected_loss) / abs(expected_loss)
    allowed = np.abs(expected) * GRAD_TOLERANCE[dtype]
    allowed += GRAD_EPS_OF_LARGEST * np.finfo(dtype).eps * np.abs(expected).max()
    difference = np.abs(np.asarray(grad) - expected)
    return loss_error, float(np.max(difference / allowed))


def prepare_rival(rival, case, logits, targets, reference):
    contender = Contender(None, library=rival.library, form=rival.form, version=rival.version(), rival=True)
    if targets.dtype.kind in "bu" and not rival.takes_flags:
        targets = targets.astype(logits.dtype)
    # Whatever goes wrong inside a foreign library, a missing compiler included, only takes that
    # rival out.
    try:
        call = rival.prepare(case.loss, logits, targets)
        errors = error_against(reference, call(), case.dtype)
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        contender.status = f"failed: {type(error).__name__}: {reason[:120]}"
        return contender
    contender.loss_error, contender.grad_error = errors
    if errors[0] <= LOSS_TOLERANCE[case.dtype] and errors[1] <= 1:
        contender.call = call
    else:
        contender.status = "disagrees"
    return contender


def with_one_thread(call):
    with stableloss.num_threads(1):
        call()


def other_forms(loss, logits, targets, compared):
    """Name and call of what else one may ask of stableloss."""
    overwritten = logits.copy()
    yield "loss alone", functools.partial(loss, logits, targets)
    yield "in place", functools.partial(loss.value_and_grad, overwritten, targets, out=overwritten)
    yield "new array", functools.partial(loss.value_and_grad, logits, targets)
    if harness.THREADS > 1:
        yield "one thread", functools.partial(with_one_thread, compared)


def prepare(case, rivals):
    """stableloss, the copy and the product; the exponential and other forms; then the rivals."""
    logits, targets = case.data()
    out, copy, product, exps = (np.empty_like(logits) for _ in range(4))
    ours = functools.partial(case.function.value_and_grad, logits, targets, out=out)
    copyto = functools.partial(np.copyto, copy, logits)
    multiply = functools.partial(np.multiply, logits, logits.dtype.type(0.5), out=product)
    exp = functools.partial(np.exp, logits, out=exps)
    value, grad = ours()
    reference = (value, grad.copy())
    contenders = [
        Contender(ours, library=OURS, form=OUT, version=stableloss.__version__),
        Contender(copyto, library=COPY, form=OUT, version=np.__version__),
        Contender(multiply, library=MULTIPLY, form=OUT, version=np.__version__),
        Contender(exp, library=EXP, form=OUT, version=np.__version__),
    ]
    for form, call in other_forms(case.function, logits, targets, ours):
        contenders.append(Contender(call, library=OURS, form=form, version=stableloss.__version__))
    for rival in rivals:
        if case.loss in rival.losses:
            contenders.append(prepare_rival(rival, case, logits, targets, reference))
    return contenders


def measure(contenders, quick):
    timed = [contender for contender in contenders if contender.call]
    for contender in timed:
        harness.calibrate(contender)
    harness.measure(timed, harness.QUICK_PAIRS if quick else harness.FEW_ROUNDS)
    if not quick:
        fastest = min((contender.median for contender in timed if contender.rival), default=math.inf)
        chosen = [one for one in timed if not one.rival or one.median <= OUT_OF_REACH * fastest]
        harness.measure(chosen, harness.rounds_for(chosen) - harness.FEW_ROUNDS)


def rows_of(case, contenders):
    ours, copy, multiply = contenders[:3]
    for contender in contenders:
        row = dict.fromkeys(COLUMNS, "")
        row.update(
            **dict(zip(KEY, case.key, strict=True)),
            library=contender.library,
            form=contender.form,
            rounds=len(contender.samples),
            calls_per_sample=contender.calls,
            status=contender.status,
            library_version=contender.version,
            stableloss_version=stableloss.__version__,
            numpy_version=np.__version__,
            python_version=platform.python_version(),
            threads=harness.THREADS,
            level=stableloss.cpu_level(),
            cpu=harness.cpu_model(),
        )
        if not math.isnan(contender.loss_error):
            row["loss_error"] = f"{contender.loss_error:.2g}"
            row["grad_error"] = f"{contender.grad_error:.2g}"
        if contender.samples:
            times = [seconds / case.logits * 1e9 for seconds in contender.samples]
            spread = np.percentile(times, (50, 20, 80))
            row.update(zip(TIMES, (f"{t:.4g}" for t in spread), strict=True))
            for name, base in zip(RATIOS, (copy, multiply, ours), strict=True):
                row[name] = f"{statistics.median(harness.ratios(contender, base)):.4g}"
        yield {name: str(value) for name, value in row.items()}


def is_wanted(case, quick):
    if harness.THREADS > 1 and case.logits < THREADED_LOGITS:
        return False
    return not quick or case.logits in QUICK_LOGITS


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--compile", action="store_true", help="fill torch.compile's cache, time nothing")
    parser.add_argument("--quick", action="store_true", help="few small cases, results kept apart")
    return parser.parse_args()


def main():
    options = parse_arguments()
    harness.use_cpus(harness.THREADS)
    cases = [case for case in all_cases(options.loss, options.dtype) if is_wanted(case, options.quick)]
    rivals = [r for r in RIVALS if r.library in options.libraries and r.available()]
    if options.compile:
        for case in cases:
            prepare(case, [rival for rival in rivals if rival.library == "torch.compile"])
        return
    suffix = "-quick" if options.quick else ""
    path = results_path(harness.THREADS, suffix)
    order = [case.key for case in all_cases()]
    measured = []
    for case in cases:
        started = time.perf_counter()
        contenders = prepare(case, rivals)
        prepared = time.perf_counter()
        measure(contenders, options.quick)
        rows = list(rows_of(case, contenders))
        measured += rows
        harness.merge_rows(path, COLUMNS, rows, case_key, order)
        print(
            f"{' '.join(case.key)}: {prepared - started:.0f} s to prepare and check, "
            f"{time.perf_counter() - prepared:.0f} s to measure",
            file=sys.stderr,
            flush=True,
        )
    if measured:
        print(report(measured))


if __name__ == "__main__":
    main()
