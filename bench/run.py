"""Times stableloss against other libraries and against a copy.

    python bench/run.py --compile            fill torch.compile's cache (on a busy machine too)
    python bench/run.py                      the plain losses, on a quiet machine
    python bench/run.py --group options      other groups, one or several: plain (unless another is named),
                                             options, activations, large, small
    python bench/run.py --loss softmax_ce    one loss or activation; the others keep their results
    python bench/run.py --isa avx2           every library kept to AVX2; results of their own
    python bench/run.py --quick              a small case of each kind and few rounds; nothing stored
    python bench/run.py --results STEM ...   stored as STEM.csv, STEM-options.csv, ... in bench/results
    STABLELOSS_NUM_THREADS=2 python bench/run.py     two threads for every library, large cases

The groups: value + gradient of every loss (plain); of one with each option, dense targets, float16 and
classes in axis 1 (options); the activations; arrays out of the caches, beside our own cost in them (large);
calls of a few logits, also with a number or a list as targets, and building a loss (small).

All contenders of a case run interleaved in this process, in random order in every round. A sample
is enough calls to last 2 ms; ratios are taken within a round, and the median over rounds is
reported. After three rounds only the rivals within twice the fastest one's time go on, to at least
15 rounds. A rival's results are compared with stableloss's before it is timed. stableloss is
timed in other forms as well: the loss alone, in place, into a new array and, where it has several
threads, with one; beside options, the plain call. Results are merged case by case into
bench/results/<cpu>-<level>.csv, of other groups <cpu>-<level>-<group>.csv, from which report.py makes the
tables and the figure: a run that is cut short loses only the case that it was at. torch.compile keeps what it
has compiled on disk, for each number of threads and instruction set apart.
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
from cases import ACTIVATIONS, CACHED, DTYPES, GROUPS, KEY, LOSSES, Case
from report import (
    BUILDING,
    CACHE,
    CACHE_ALONE,
    COPY,
    EXP,
    LOSS_ALONE,
    MULTIPLY,
    NEW_ARRAY,
    OURS,
    OUT,
    PLAIN,
    WITH_LIST,
    WITH_NUMBER,
    case_key,
    report,
    results_path,
)
from rivals import LIBRARIES, RIVALS

import stableloss

# 4096 rows of ten classes, or as many logits of another kind; so that README has rows of these.
QUICK_LOGITS = 40_960
# Beside whom a group is timed, where not beside all that have its calls: large arrays beside our own cost in
# cache, and small calls beside those that are at home there.
RIVALS_OF = {"large": (), "small": ("numpy", "numba")}
# From here stableloss shares a call out.
THREADED_LOGITS = 262144

FUNCTIONS = (*LOSSES, *ACTIVATIONS)

# A rival this much slower than the fastest is not the best one, whatever the noise.
OUT_OF_REACH = 2

# Rivals add the loss in the working precision and in a few lanes, which was seen to cost 1e-5 in
# float32 and 1e-12 in float64 for 1e7 terms; the tolerance leaves a factor of ten.
LOSS_TOLERANCE = {"float16": 1e-4, "float32": 1e-4, "float64": 1e-11}
# A sum of 128256 exponentials is off by up to 1e-5 (float32), and every gradient entry of the row
# inherits that. float16 is computed in float32, and each entry rounded.
GRAD_TOLERANCE = {"float16": 2e-3, "float32": 1e-4, "float64": 1e-11}
# p - 1 and 1 - p are rounded to eps of 1, whatever is left of the difference, so that small entries
# are only good to some eps of the largest one.
GRAD_EPS_OF_LARGEST = 16

TIMES = ("ns_per_logit", "ns_p20", "ns_p80")
RATIOS = ("ratio_to_copyto", "ratio_to_multiply", "ratio_to_stableloss")
COLUMNS = (
    *KEY, "library", "form", *TIMES, *RATIOS, "rounds", "calls_per_sample", "status", "loss_error",
    "grad_error", "library_version", "stableloss_version", "numpy_version", "python_version",
    "threads", "isa", "level", "cpu",
)  # fmt: skip


@dataclass
class Contender(harness.Timed):
    library: str = ""
    form: str = ""
    version: str = ""
    logits: int = 0
    status: str = "ok"
    loss_error: float = math.nan
    grad_error: float = math.nan
    rival: bool = False


def error_against(reference, result, dtype):
    """Relative error of the loss, if there is one, and an array's largest error in units of its tolerance."""
    loss_error = 0.0
    if isinstance(reference, tuple):
        (expected_loss, reference), (loss, result) = reference, result
        loss_error = abs(float(loss) - expected_loss) / abs(expected_loss)
    expected = reference.astype(np.promote_types(dtype, np.float32), copy=False)
    allowed = np.abs(expected) * GRAD_TOLERANCE[dtype] + np.finfo(dtype).smallest_subnormal
    allowed += GRAD_EPS_OF_LARGEST * np.finfo(expected.dtype).eps * np.abs(expected).max()
    difference = np.abs(np.asarray(result) - expected)
    return loss_error, float(np.max(difference / allowed))


def prepare_rival(rival, case, data, reference):
    logits, targets, given = data
    contender = Contender(
        None, library=rival.library, form=rival.form, version=rival.version(), logits=case.logits, rival=True
    )
    if case.targets in ("bool", "uint8") and not rival.takes_flags:
        targets = targets.astype(logits.dtype)
    # Whatever goes wrong inside a foreign library, a missing compiler included, only takes that
    # rival out.
    try:
        call = rival.prepare(case, logits, targets, given)
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


# ---- stableloss's own calls -----------------------------------------------------------------------


def fused(case, data, **out):
    """Loss and gradient, or the activation."""
    logits, targets, given = data
    function, at_call = case.with_options(given)
    if case.is_activation:
        return functools.partial(function, logits, **out)
    return functools.partial(function.value_and_grad, logits, targets, **at_call, **out)


def alone(case, data):
    """The loss alone."""
    logits, targets, given = data
    function, at_call = case.with_options(given)
    return functools.partial(function, logits, targets, **at_call)


def into_array(case, data):
    """`fused` into an array that is kept."""
    result = fused(case, data)()
    return fused(case, data, out=result if case.is_activation else result[1])


def with_one_thread(call):
    with stableloss.num_threads(1):
        call()


def other_forms(group, case, data, compared):
    """Name, call and number of logits of what else one may ask of stableloss."""
    logits, targets, given = data
    if not case.is_activation:
        yield LOSS_ALONE, alone(case, data), case.logits
    if group == "options":
        plain = Case(case.loss, case.dtype if case.dtype in DTYPES else DTYPES[0], (case.n, case.k))
        yield PLAIN, into_array(plain, plain.data()), case.logits
    elif group == "large":
        small = case.of_size(CACHED)
        of_small = small.data()
        yield CACHE, into_array(small, of_small), small.logits
        if not case.is_activation:
            yield CACHE_ALONE, alone(small, of_small), small.logits
    else:
        yield NEW_ARRAY, fused(case, data), case.logits
        if not case.is_activation:
            overwritten = logits.copy()
            yield "in place", fused(case, (overwritten, targets, given), out=overwritten), case.logits
    if group == "small":
        yield WITH_LIST, alone(case, (logits, targets.tolist(), given)), case.logits
        if targets.shape == (1,):
            yield WITH_NUMBER, alone(case, (logits[0], targets[0].item(), given)), case.logits
        yield BUILDING, functools.partial(type(case.function), reduction="sum"), case.logits
    if harness.THREADS > 1:
        yield "one thread", functools.partial(with_one_thread, compared), case.logits


def prepare(group, case, rivals):
    """stableloss, the copy and the product; the exponential and other forms; then the rivals."""
    data = case.data()
    logits = data[0]
    copy, product, exps = (np.empty_like(logits) for _ in range(3))
    ours = into_array(case, data)
    contenders = [Contender(ours, library=OURS, form=OUT, version=stableloss.__version__, logits=case.logits)]
    for library, call in (
        (COPY, functools.partial(np.copyto, copy, logits)),
        (MULTIPLY, functools.partial(np.multiply, logits, logits.dtype.type(0.5), out=product)),
        (EXP, functools.partial(np.exp, logits, out=exps)),
    ):
        contenders.append(
            Contender(call, library=library, form=OUT, version=np.__version__, logits=case.logits)
        )
    for form, call, size in other_forms(group, case, data, ours):
        contenders.append(
            Contender(call, library=OURS, form=form, version=stableloss.__version__, logits=size)
        )
    result = ours()
    reference = result.copy() if case.is_activation else (result[0], result[1].copy())
    for rival in rivals:
        if rival.takes(case):
            contenders.append(prepare_rival(rival, case, data, reference))
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
            isa=harness.ISA,
            level=stableloss.cpu_level(),
            cpu=harness.cpu_model(),
        )
        if not math.isnan(contender.loss_error):
            row["loss_error"] = f"{contender.loss_error:.2g}"
            row["grad_error"] = f"{contender.grad_error:.2g}"
        if contender.samples:
            times = [seconds / contender.logits * 1e9 for seconds in contender.samples]
            spread = np.percentile(times, (50, 20, 80))
            row.update(zip(TIMES, (f"{t:.4g}" for t in spread), strict=True))
            for name, base in zip(RATIOS, (copy, multiply, ours), strict=True):
                ratio = statistics.median(harness.ratios(contender, base)) * base.logits / contender.logits
                row[name] = f"{ratio:.4g}"
        yield {name: str(value) for name, value in row.items()}


def wanted_cases(group, functions, dtypes, quick):
    cases = [case for case in GROUPS[group]() if case.loss in functions and case.dtype in dtypes]
    if harness.THREADS > 1:
        cases = [case for case in cases if case.logits >= THREADED_LOGITS]
    if not quick or group == "small":
        return cases
    nearest = {}
    for case in sorted(cases, key=lambda case: abs(math.log(case.logits / QUICK_LOGITS)), reverse=True):
        nearest[case.kind] = case.of_size(QUICK_LOGITS)
    return list(nearest.values())


def run_group(group, cases, rivals, quick, stem):
    """Measure and print; and store, unless it is to be quick and no place is named."""
    path = results_path(group, harness.THREADS, stem=stem)
    order = [case.key for case in (cases if quick else GROUPS[group]())]
    measured = []
    begun = time.perf_counter()
    for case in cases:
        started = time.perf_counter()
        contenders = prepare(group, case, rivals)
        prepared = time.perf_counter()
        measure(contenders, quick)
        rows = list(rows_of(case, contenders))
        measured += rows
        if stem or not quick:
            harness.merge_rows(path, COLUMNS, rows, case_key, order)
        print(
            f"{' '.join(case.key)}: {prepared - started:.0f} s to prepare and check, "
            f"{time.perf_counter() - prepared:.0f} s to measure",
            file=sys.stderr,
            flush=True,
        )
    if measured:
        print(f"{group}: {(time.perf_counter() - begun) / 60:.1f} minutes", file=sys.stderr, flush=True)
        print(report(group, measured), flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", nargs="+", choices=GROUPS, default=["plain"])
    parser.add_argument("--loss", nargs="+", choices=FUNCTIONS, default=FUNCTIONS, help="or activation")
    parser.add_argument("--dtype", nargs="+", choices=(*DTYPES, "float16"), default=(*DTYPES, "float16"))
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--isa", choices=harness.ISAS, default="", help="what every library is kept to")
    parser.add_argument("--compile", action="store_true", help="fill torch.compile's cache, time nothing")
    parser.add_argument("--quick", action="store_true", help="few small cases, nothing stored")
    parser.add_argument("--results", metavar="STEM", help="where to store, in bench/results")
    return parser.parse_args()


def main():
    options = parse_arguments()
    harness.restrict(options.isa)
    harness.use_cpus(harness.THREADS)
    for group in options.group:
        cases = wanted_cases(group, options.loss, options.dtype, options.quick)
        libraries = set(RIVALS_OF.get(group, LIBRARIES)) & set(options.libraries)
        rivals = [rival for rival in RIVALS if rival.library in libraries and rival.available()]
        if options.compile:
            compiled = [rival for rival in rivals if rival.library == "torch.compile"]
            for case in cases if compiled else ():
                status = [one.status for one in prepare(group, case, compiled) if one.rival]
                print(f"{' '.join(case.key)}: {', '.join(status)}", file=sys.stderr, flush=True)
        else:
            run_group(group, cases, rivals, options.quick, options.results)


if __name__ == "__main__":
    main()
