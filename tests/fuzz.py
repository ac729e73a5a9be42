"""Calls every public function with arguments of every kind, right and wrong, and judges what comes back.

    python tests/fuzz.py --calls 20000 --seed 1     what .ci/run does
    python tests/fuzz.py --calls 1000000            from a new seed; STABLELOSS_CPU forces a level, as ever
    python tests/fuzz.py --seed 1 --only 12345      one call again, in this process
    python tests/fuzz.py --threads 4 --calls 2000   threads that share loss, inputs and the array of outputs

A call is made from the seed and its number alone. All of its arrays, outputs included, lie between pages
that must not be touched, with canaries where a page does not end. A right call

- has the bits of the same call with plain arrays of its own, on one thread; and of a second run;
- returns, for some of its rows or elements, what oracle.py has for them, within the bounds of bounds.py, and
  a reduced loss that is the sum of those that are not, over the documented divisor;
- writes to its outputs and nowhere else.

A wrong call raises TypeError or ValueError and has written nothing. The calls run in a child process: where
it dies, its parent names the call.
"""

import argparse
import faulthandler
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import bits
import bounds
import fuzz_wrong
import gmpy2
import numpy as np
import oracle
from fuzz_calls import ActivationCall, Draw, LossCall

import stableloss as sl

# names the file in which the child notes the call that it is at
PROGRESS = "STABLELOSS_FUZZ_PROGRESS"


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="the time, unless given")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="the call of this number, in this process")
    parser.add_argument("--keep-going", action="store_true", help="report every call that fails, to the end")
    parser.add_argument("--threads", type=int, default=0, help="as many threads make each call at once")
    parser.add_argument("--skip", default="", metavar="KINDS", help="of wrong calls or arrays to leave out")
    return parser.parse_args(arguments)


def reproduction(options, number):
    """The command that makes the call again."""
    words = [f"python tests/fuzz.py --seed {options.seed} --only {number}"]
    if "STABLELOSS_CPU" in os.environ:
        words.insert(0, f"STABLELOSS_CPU={os.environ['STABLELOSS_CPU']}")
    if options.threads:
        words.append(f"--threads {options.threads}")
    if options.skip:
        words.append(f"--skip {options.skip}")
    return " ".join(words)


def watch(options):
    """Run the calls in a child; name the call in which it died."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("q", -1))
        file.flush()
        command = [sys.executable, __file__, *sys.argv[1:], "--seed", str(options.seed)]
        child = subprocess.run(command, env={**os.environ, PROGRESS: file.name})
        file.seek(0)
        number = struct.unpack("q", file.read(8))[0]
    if child.returncode < 0:
        print(f"died of signal {-child.returncode} in call {number}: {reproduction(options, number)}")
    return int(child.returncode != 0)


ACTIVATION_SHARE, LARGE_SHARE, WRONG_SHARE, ORACLE_SHARE, AGAIN_SHARE = 0.15, 0.004, 0.25, 0.2, 0.15


class Failure(Exception):
    """A call did what it must not."""


# ---- the same bits -------------------------------------------------------------------------------


def same_bits(a, b):
    """Equal type, shape and bits; one NaN is as good as another."""
    if type(a) is float or type(b) is float:
        return type(a) is type(b) and (a == b or (a != a and b != b))
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.tobytes() == b.tobytes():
        return True
    if a.dtype.kind in "biu":
        return False
    nan = a != a
    if not (nan == (b != b)).all():
        return False
    return np.where(nan, a.dtype.type(0), a).tobytes() == np.where(nan, b.dtype.type(0), b).tobytes()


def require_same(results, expected, what):
    for name, value in expected.items():
        if not same_bits(results[name], value):
            got, wanted = np.asarray(results[name]), np.asarray(value)
            text = f"{name} differs from {what}: {got.dtype}{got.shape}, {wanted.dtype}{wanted.shape}"
            if got.shape == wanted.shape:
                differs = np.argwhere(~((got == wanted) | ((got != got) & (wanted != wanted))))
                for at in map(tuple, differs[:1].tolist()):
                    text += f", {len(differs)} entries, {got[at]!r} for {wanted[at]!r} at {at}"
            raise Failure(text)


def require_near(a, b):
    if not (same_bits(a, b) or abs(a - b) <= 1e-14 * abs(b)):
        raise Failure(f"the loss is {a!r}, of plain arrays {b!r}")


def require_memory(call, what):
    """That nothing but the outputs has been written."""
    for block in call.memory.blocks:
        mine = [array for array in call.outputs.values() if np.may_share_memory(array, block.raw)]
        if not block.unchanged(mine[0].view(np.ndarray) if mine else None):
            raise Failure(f"{what} has written beside its outputs")


# ---- exact results -------------------------------------------------------------------------------


def weights_of(call):
    """What each row (element) counts for, and whether it counts at all."""
    plain = call.plain
    counts = ~call.ignores(plain["targets"])
    if "mask" in plain:
        counts = counts & (call.per_unit(plain["mask"]) != 0)
    weight = np.ones(call.units)
    if "sample_weight" in plain:
        weight = call.per_unit(plain["sample_weight"]).astype(np.float64)
    return np.where(counts, weight, 0.0), counts


def divisor(call, weight, counts):
    """As documented; 0 where nothing counts."""
    if call.reduction == "batchmean":
        return float((counts if call.by_rows or not call.shape else counts.any(axis=-1)).sum())
    return call.total(weight, counts, call.plain["targets"]) if call.by_rows else float(counts.sum())


def scale_of(call, weight, counts):
    """What the results of a call are divided by."""
    if "denominator" in call.plain:
        return float(call.plain["denominator"])
    if call.reduction not in ("mean", "batchmean") or call.method == "grad_and_hess":
        return 1.0
    return divisor(call, weight, counts) or 1.0


def sample(call):
    """The numbers of a few rows or elements: the oracle takes a tenth of a millisecond for a logit."""
    count, k = int(np.prod(call.units)), call.k if call.by_rows else 1
    if not count or (k > 40 and not call.r.chance(20 / k)):
        return []
    return sorted(call.r.sample(range(count), min(count, max(1, min(4, 16 // k)))))


def rows_of(call, array, at):
    """Those rows (elements) of an array of the shape of the logits, or of one number for each."""
    array = np.asarray(array)
    wide = call.by_rows and array.ndim == len(call.plain_shape)
    return array.reshape((-1, call.k) if wide else -1)[at]


def exact_options(call, at):
    """The options as the oracle takes them."""
    options = {name: value for name, value in call.options.items() if name not in ("axis", "reduction")}
    if not call.by_rows:
        # one output for each of these elements
        for name in ("class_weight", "pos_weight"):
            if np.ndim(options.get(name)):
                weights = np.asarray(options[name], np.float64)
                options[name] = weights[np.array(at) % len(weights)]
    # such rows (elements) have weight 0
    options.pop("ignore_index", None)
    return options | ({"ignore_index": None} if call.by_rows and call.name in oracle.OPTIONS else {})


def exact_units(call, at, weight):
    """Quantities by name for those rows (elements), not divided."""
    w, plain = weight.ravel()[at], call.plain
    logits, targets = (rows_of(call, plain[name], at) for name in ("logits", "targets"))
    v = rows_of(call, plain["v"], at).astype(np.float64) if "v" in plain else None
    logits = logits.astype(np.float32 if logits.dtype.itemsize == 2 else logits.dtype)
    by_index = targets.ndim < logits.ndim
    targets = np.where(
        (w == 0) if by_index or not call.by_rows else (w == 0)[:, None], targets.dtype.type(0), targets
    )
    targets = targets.astype(np.int64 if by_index else np.float64)
    if not by_index:  # beyond its bounds by rounding
        targets = np.clip(targets, 0, bits.target_max(call.name))
    if call.options.get("from_probabilities"):
        logits = np.clip(logits, 0, 1)
    options = exact_options(call, at)
    if call.name in oracle.OPTIONS:
        exact = stats = oracle.OPTIONS[call.name](
            logits, targets, v, **options, reduction="sum", sample_weight=w
        )
        found = {
            "loss": exact.loss, "grad": exact.grad, "hess": exact.hess, "hessian_vector_product": exact.hvp,
            "target_grad": exact.target_grad,
        }  # fmt: skip
    else:
        found, stats = exact_plain(call, logits, targets, v, w, options)
    if "with_stats" in plain:
        found |= {name: getattr(stats, name) for name in ("logsumexp", "entropy", "probabilities")}
    return {name: quantity for name, quantity in found.items() if quantity is not None}


def exact_plain(call, logits, targets, v, w, options):
    """Of a loss without options of its own; and statistics, which are those of another loss of its kind."""
    wide = w[:, None] if call.by_rows else w
    clip = options.get("logit_clip", np.inf)
    logits = np.clip(np.where(wide != 0, logits, 0).astype(np.float64), -clip, clip)
    exact = oracle.LOSSES[call.name](logits, targets)
    found = {}
    for name in ("loss", "grad", "hess"):
        value = getattr(exact, name)
        quantity = oracle.Quantity(value, getattr(exact, f"{name}_term"), np.zeros(value.shape))
        found[name] = quantity.scaled(oracle.lift(w if name == "loss" else wide))
    if v is not None:
        value, term = oracle.ALONG[call.name](logits, targets, v)
        product = oracle.Quantity(value, term, np.zeros(value.shape))
        found["hessian_vector_product"] = product.scaled(oracle.lift(wide))
    like = next(stem for stem in oracle.OPTIONS if bits.by_rows(stem) == call.by_rows)
    return found, oracle.OPTIONS[like](logits, targets, reduction="sum", sample_weight=w)


def precision_for(call, at):
    """Bits that leave the oracle's formulas several times the precision of float64."""
    x = rows_of(call, call.plain["logits"], at).astype(np.float64)
    x = np.where(np.isfinite(x), x, 0) * float(call.options.get("logit_scale", 1))
    spread = float(np.ptp(x, axis=1).max() if call.by_rows else abs(x).max())
    gamma = float(np.max(call.options.get("focal_gamma", 0)))
    return int(min(oracle.LEAST_BITS + 3 * (1 + gamma) * min(spread, 1000), 2 * oracle.BITS)) + 64


def documented(call, name, at):
    """Which of those rows (elements) have a result of that name that is promised."""
    x = rows_of(call, call.plain["logits"], at).astype(np.float64).reshape(len(at), -1)
    known = np.ones(len(at), bool)
    # without a limit: loss and derivatives are NaN, unless a factor of 0 takes them out
    factors = ("class_weight", "pos_weight", "focal_alpha", "focal_gamma", "softcap")
    if name not in ("loss", "grad", "hess") or any(name in call.options for name in factors):
        known &= ~np.isnan(x).any(axis=1)
        known &= not call.by_rows or ~np.isneginf(x).all(axis=1)
    if call.options.get("z_loss"):
        # of an infinite logsumexp
        known &= ~np.isposinf(x).any(axis=1)
    return known


STATISTICS = ("logsumexp", "entropy", "probabilities")
NAMES = {
    "loss": "loss", "grad": "gradient", "hess": "Hessian", "hessian_vector_product": "Hessian-vector product",
    "target_grad": "target gradient", **{name: name for name in STATISTICS},
}  # fmt: skip


def check_loss(call, results):
    """Some rows (elements) against the oracle, and reduced losses against their sum."""
    weight, counts = weights_of(call)
    scale = scale_of(call, weight, counts)
    results = dict(results)
    if "loss" in results and call.reduction != "none":
        apart = {n: v for n, v in call.plain.items() if n not in ("denominator", "with_stats", "out")}
        losses, reduced = call.plain_loss(reduction="none"), results["loss"]
        results["loss"] = losses(**apart)
        if apart.pop("sample_weight", None) is not None:
            apart["mask"] = weight != 0
        check_reduced(call, reduced, np.asarray(losses(**apart)), weight, scale)
    at = sample(call)
    if not at:
        return
    tiny = float(oracle.finfo(call.dtype).smallest_normal)
    # what is below the smallest normal number, on the way to a product too, may have lost its digits
    floor = max(tiny, bounds.floor_of(call.dtype, bool(call.options.get("from_probabilities"))))
    floor *= max(1.0, float(abs(weight.ravel()[at]).max()) / scale)
    with gmpy2.context(gmpy2.get_context(), precision=precision_for(call, at)):
        for name, quantity in exact_units(call, at, weight).items():
            if name not in results:
                continue
            if name not in ("loss", "hess", *STATISTICS):
                quantity = quantity.divided(oracle.lift(scale).item())
            rows = documented(call, name, at)
            if name in STATISTICS:  # of rows that count
                rows &= weight.ravel()[at] != 0
            got = rows_of(call, results[name], at)[rows]
            # unrounded results of half precision are those of float32
            got = got.astype(np.float32) if call.dtype.itemsize == 2 < got.dtype.itemsize else got
            quantity = oracle.Quantity(*(np.asarray(part)[rows] for part in quantity))
            # products of a probability, which may be 0 already, and its logarithm
            least = floor * (1000 if name == "entropy" or "focal_gamma" in call.options else 1)
            require_within(NAMES[name], got, quantity, call.dtype, least, at)


def require_within(what, got, quantity, dtype, floor, at):
    try:
        bounds.assert_exact(what, got, quantity, dtype, floor)
    except AssertionError as error:
        raise Failure(f"of {at}: {error}") from None


def check_reduced(call, value, losses, weight, scale):
    if type(value) is not float:
        raise Failure(f"a reduced loss is a {type(value).__name__}")
    numbers = np.where(weight == 0, 0, losses.astype(np.longdouble) * weight).ravel()
    total, size = float((numbers / scale).sum()), float(abs(numbers / scale).sum())
    relative, least = (4 * 2.0**-52, 5e-324) if call.dtype == np.float64 else (3e-7, 2.0**-149)
    least *= 1 + float(abs(weight.astype(np.longdouble)).sum() / scale)
    near = same_bits(value, total) or abs(value - total) <= relative * size + least
    # infinities, and what the weights make infinite, may be of either sign
    if not near and np.isfinite(numbers).all():
        raise Failure(f"the loss is {value!r}, the sum of all losses over the divisor {total!r}")


def check_divisor(call):
    weight, counts = weights_of(call)
    expected = divisor(call, weight, counts)
    if call.by_rows and call.reduction != "batchmean" and expected <= 0 and weight.any():
        return  # there is no mean
    others = {name: call.given[name] for name in ("sample_weight", "mask") if name in call.given}
    got = call.loss().divisor(call.given_shape, call.given["targets"], **others)
    if type(got) is not float or abs(got - expected) > 1e-15 * abs(expected):
        raise Failure(f"the divisor is {got!r}, by its definition {expected!r}")


def check_activation(call, results):
    at = sample(call)
    if not at:
        return
    x = rows_of(call, call.plain["x"], at)
    half = x.dtype.itemsize == 2
    with gmpy2.context(gmpy2.get_context(), precision=oracle.BITS):
        exact, term = getattr(oracle, call.name)(x.astype(np.float32) if half else x), None
        if not call.keeps_axis:
            exact, term = exact
        rows = np.isfinite(x.astype(np.float64).reshape(len(at), -1).max(axis=1)) | call.keeps_axis
        got = rows_of(call, results["value"], at)[rows]
        limit = 0.51 if half else 3 + (not bits.fused())
        slack = oracle.lift(2.0**-118 if half else 0.0)
        try:
            term = None if term is None else term[rows]
            oracle.assert_within(limit, got, exact[rows], x.dtype, term, call.name, slack, not half)
        except AssertionError as error:
            raise Failure(f"of {at}: {error}") from None


# ---- a call --------------------------------------------------------------------------------------


def check_right(call):
    with sl.num_threads(call.threads):
        returned, results = call.run()
    for name, array in call.outputs.items():
        if returned[name] is not array:
            raise Failure(f"{name} is not the array that was given for it")
    results = {name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in results.items()}
    require_memory(call, "the call")
    with sl.num_threads(1):
        expected = call.run_plain()
    if call.axis != -1 and not call.by_rows and isinstance(results.get("loss"), float):
        # its elements are added in another order
        require_near(results["loss"], expected.pop("loss"))
    require_same(results, expected, "that of plain arrays")
    if call.large or call.r.chance(AGAIN_SHARE):
        for block in call.memory.blocks:
            block.restore()
        with sl.num_threads(3 if call.large else 1):
            require_same(results, call.run()[1], "the first run's")
    if isinstance(call, LossCall) and call.r.chance(AGAIN_SHARE) and not call.outputs:
        check_divisor(call)
    if call.r.chance(ORACLE_SHARE):
        (check_loss if isinstance(call, LossCall) else check_activation)(call, results)


def check_wrong(call, kind):
    expected = kind(call.r, call)
    if expected is None:
        return
    call.memory.remember()
    what = kind.__name__
    try:
        with sl.num_threads(call.threads):
            call.call(call.given)
    except (TypeError, ValueError) as error:
        if not isinstance(error, expected if isinstance(expected, type) else expected[:2]):
            raise Failure(f"{what}: {type(error).__name__} instead of {expected.__name__}: {error}") from None
        if not str(error):
            raise Failure(f"{what}: an error without a message") from None
        if kind is not fuzz_wrong.changes_meanwhile:
            call.outputs = {}
            require_memory(call, f"{what}: an error")
    else:
        if expected is not fuzz_wrong.EITHER:
            raise Failure(f"{what}: no error")


def draw_call(r):
    large = r.chance(LARGE_SHARE)
    return ActivationCall(r, large) if r.chance(ACTIVATION_SHARE) else LossCall(r, large)


def one_call(seed, number, skip=()):
    """Make and judge the call of that number; returns it."""
    r = Draw(seed, number, skip)
    call = draw_call(r)
    try:
        kind = None
        if not call.large and r.chance(WRONG_SHARE):
            of = fuzz_wrong.OF_LOSSES if isinstance(call, LossCall) else fuzz_wrong.OF_ACTIVATIONS
            kind = r.choice([kind for kind in of if kind.__name__ not in skip])
        if kind is None:
            check_right(call)
        else:
            check_wrong(call, kind)
    except BaseException as error:
        error.__notes__ = [call.describe()]  # as add_note does, which CPython 3.10 lacks
        raise
    return call


def shared_call(seed, number, skip, threads):
    """One right call of a loss by several threads at once: the same loss and inputs, neighbouring outputs."""
    r = Draw(seed, number, skip)
    call = LossCall(r, r.chance(0.1))
    for name in ("out", "probabilities"):
        call.given.pop(name, None)
        call.plain.pop(name, None)
    call.outputs = {}
    loss, single = call.loss(), "out" in call.takes and call.method != "grad_and_hess"
    together = np.empty((threads + 1, *call.given_shape), call.dtype)
    found = [None] * threads
    ready = threading.Barrier(threads)

    def results(i, threads_of_call):
        given = {**call.given, "out": together[i, ...]} if single else call.given
        with sl.num_threads(threads_of_call):
            returned = call.results(call.call(given, loss))
        return {name: call.last(value) for name, value in returned.items()}

    def work(i):
        try:
            ready.wait()
            found[i] = results(i, 1 + i % 3)
        except BaseException as error:
            found[i] = error

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    try:
        # of the same arrays: with its axis moved, a call adds up elements in another order
        expected = results(threads, 1)
        for each in found:
            if isinstance(each, BaseException):
                raise each
            require_same(each, expected, "that of one thread")
        require_memory(call, "the call")
    except BaseException as error:
        error.__notes__ = [call.describe()]  # as add_note does, which CPython 3.10 lacks
        raise
    return call


# ---- all calls -----------------------------------------------------------------------------------


def report(error, options, number):
    if isinstance(error, Failure):
        print(error, *getattr(error, "__notes__", ()), sep="\n")
    else:
        traceback.print_exception(error)
    print(f"call {number} failed: {reproduction(options, number)}", flush=True)


def work(options):
    """In the child: every call; the exit status."""
    faulthandler.enable()
    np.seterr(all="ignore")
    progress = bytearray(8)
    if PROGRESS in os.environ:
        with open(os.environ[PROGRESS], "r+b") as file:
            progress = mmap.mmap(file.fileno(), 8)
    numbers = range(options.calls) if options.only is None else [options.only]
    skip, failed, started = options.skip.split(","), 0, time.perf_counter()
    for number in numbers:
        struct.pack_into("q", progress, 0, number)
        try:
            if options.threads:
                call = shared_call(options.seed, number, skip, options.threads)
            else:
                call = one_call(options.seed, number, skip)
        except Exception as error:
            report(error, options, number)
            failed += 1
            if not options.keep_going:
                return 1
        else:
            if options.only is not None:
                print(call.describe())
    seconds = time.perf_counter() - started
    print(
        f"level {sl.cpu_level()}, seed {options.seed}: {len(numbers)} calls in {seconds:.0f} s, "
        f"{len(numbers) / seconds:.0f} a second, {failed} failed"
    )
    return int(failed > 0)


def main():
    options = parse_arguments()
    alone = PROGRESS in os.environ or options.only is not None
    sys.exit(work(options) if alone else watch(options))


if __name__ == "__main__":
    main()
