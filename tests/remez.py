"""The constants of sl_math.h: minimax polynomials by Remez's exchange, and the logarithms of powers of two.

    python tests/remez.py     print them as sl_math.h defines them, and the error of each polynomial

A fit is the polynomial p whose largest weighted distance from a function f, max |w (p - f)|, is least on
an interval. The exchange works with 60 digits and on 60 (n + 1) + 1 Chebyshev points for n coefficients,
so close that nothing has to be found between them. Each coefficient is then rounded to its type.
"""

from collections.abc import Callable
from typing import NamedTuple

import mpmath
from mpmath import mpf

DIGITS = 60
POINTS_PER_EXTREMUM = 60


class Format(NamedTuple):
    bits: int  # of the significand
    least: int  # exponent of the smallest normal number
    grid: int  # ln 2 in two parts: the first is a multiple of 2**-grid


FORMATS = {"F32": Format(24, -126, 15), "F64": Format(53, -1022, 41)}


class Fit(NamedTuple):
    """Polynomials with `count` coefficients; the error is relative to `of`."""

    count: int
    function: Callable
    weight: Callable
    ends: Callable  # of the interval, at the precision in force
    of: str


# ---- what is fitted ------------------------------------------------------------------------------


# Nearer to 0 the differences below would lose most of the digits.
NEAR = mpf(10) ** -15


def rest_of_exp(r):
    """(e**r - 1 - r) / r**2"""
    return (mpmath.expm1(r) - r) / r**2 if abs(r) > NEAR else mpf(1) / 2


def rest_of_log1p(t):
    """(log(1 + t) - t) / t**2"""
    return (mpmath.log1p(t) - t) / t**2 if t > NEAR else -mpf(1) / 2


def rest_of_atanh(z):
    """2 (atanh(s) - s) / s**3 with s**2 = z"""
    s = mpmath.sqrt(z)
    return 2 * (mpmath.atanh(s) - s) / s**3 if s > NEAR else mpf(2) / 3


def rest_of_tanh(z):
    """(tanh(t) - t) / t**3 with t**2 = z"""
    t = mpmath.sqrt(z)
    return (mpmath.tanh(t) - t) / t**3 if t > NEAR else -mpf(1) / 3


def weight_of_tanh(z):
    t = mpmath.sqrt(z)
    return t**3 / mpmath.tanh(t) if t else mpf(0)


def rest_of_share(e):
    """(1 / (1 + e) - 1) / e"""
    return -1 / (1 + e)


def reduced():
    """The arguments of e**r: up to ln(2) / 2, and a little beyond where their reduction has rounded."""
    end = mpmath.ln2 / 2 * mpf("1.0001")
    return -end, end


EXP = {
    count: Fit(count, rest_of_exp, lambda r: r**2 / mpmath.exp(r), reduced, "e**r") for count in (5, 6, 10)
}
LOG1P = {
    count: Fit(
        count,
        rest_of_log1p,
        lambda t: t**2 / mpmath.log1p(t) if t else mpf(0),
        lambda: (mpf(0), mpf(1)),
        "log(1 + t)",
    )
    for count in (10, 12)
}
FITS = {
    ("EXP", "F32"): EXP[5],
    ("EXP", "F64"): EXP[10],
    ("BRIEF", "F64"): EXP[6],
    ("SHARE", "F64"): Fit(
        6,
        rest_of_share,
        lambda e: e * (1 + e),
        lambda: (mpf(0), mpmath.exp(-2) * mpf("1.0001")),
        "1 / (1 + e)",
    ),
    ("BRIEFTANH", "F64"): Fit(9, rest_of_tanh, weight_of_tanh, lambda: (mpf(0), mpf(1)), "tanh(t)"),
    ("TANH", "F64"): Fit(10, rest_of_tanh, weight_of_tanh, lambda: (mpf(0), mpf("0.2501")), "tanh(t)"),
    ("LOG", "F32"): LOG1P[10],
    ("BRIEFLOG", "F64"): LOG1P[12],
    # log(1 + f) = 2 atanh(s) with s = f / (2 + f), at most 1/5; the error is relative to 2 s
    ("LOG", "F64"): Fit(8, rest_of_atanh, lambda z: z / 2, lambda: (mpf(0), mpf("0.0401")), "2 s"),
}


# ---- the exchange --------------------------------------------------------------------------------


def polynomial(coefficients, x):
    value = mpf(0)
    for c in reversed(coefficients):
        value = value * x + c
    return value


def levelled(fit, points):
    """The coefficients whose weighted distances at the points are equal and alternate in sign."""
    rows = [[fit.weight(x) * x**j for j in range(fit.count)] + [mpf(-1) ** i] for i, x in enumerate(points)]
    right = [fit.weight(x) * fit.function(x) for x in points]
    return list(mpmath.lu_solve(mpmath.matrix(rows), mpmath.matrix(right)))[: fit.count]


def alternation(distances, count):
    """Where the distances are largest, one place for each run of one sign, `count` of them."""
    places = []
    for i, d in enumerate(distances):
        if places and (d < 0) == (distances[places[-1]] < 0):
            if abs(d) > abs(distances[places[-1]]):
                places[-1] = i
        elif d:
            places.append(i)
    while len(places) > count:
        places.pop(0 if abs(distances[places[0]]) < abs(distances[places[-1]]) else -1)
    return places


def solve(fit):
    """The coefficients before rounding, and their largest weighted distance."""
    with mpmath.workdps(DIGITS):
        low, high = fit.ends()
        count = fit.count + 1
        last = POINTS_PER_EXTREMUM * count
        grid = [(low + high - (high - low) * mpmath.cos(mpmath.pi * i / last)) / 2 for i in range(last + 1)]
        # not in the middle of its share, which may be 0, where the weight is 0
        places = [POINTS_PER_EXTREMUM * i + POINTS_PER_EXTREMUM // 3 for i in range(count)]
        while True:
            coefficients = levelled(fit, [grid[i] for i in places])
            distances = [fit.weight(x) * (polynomial(coefficients, x) - fit.function(x)) for x in grid]
            before, places = places, alternation(distances, count)
            if places == before:
                return coefficients, max(map(abs, distances))


# ---- the constants -------------------------------------------------------------------------------


def rounded(value, bits, rounding="n"):
    """To so many bits, to the nearest unless told otherwise."""
    with mpmath.workprec(bits):
        return float(mpmath.mpf(value, rounding=rounding))


def fitted(name, type_name):
    """Name and value of each coefficient of a set, and the binary logarithm of its fitted error."""
    coefficients, error = solve(FITS[name, type_name])
    bits = FORMATS[type_name].bits
    values = {f"SL_{name}{i}_{type_name}": rounded(c, bits) for i, c in enumerate(coefficients)}
    return values, float(mpmath.log(error, 2))


def logarithms(type_name):
    """Name and value of what the reduction of an exponential's argument needs."""
    bits, least, grid = FORMATS[type_name]
    with mpmath.workdps(DIGITS):
        high = mpmath.nint(mpmath.ln2 * 2**grid) / 2**grid
        values = {
            "LOG2E": rounded(1 / mpmath.ln2, bits),
            "LN2_HI": float(high),
            "LN2_LO": rounded(mpmath.ln2 - high, bits),
            # not below the logarithm itself: there e**x is still a normal number
            "EXP_MIN": rounded(least * mpmath.ln2, bits, "d"),
        }
    return {f"SL_{name}_{type_name}": value for name, value in values.items()}


def definition(name, value):
    """As in sl_math.h: hexadecimal, and in a comment enough decimals to tell it from its neighbours."""
    single = name.endswith("F32")
    mantissa, exponent = value.hex().split("p")
    hexadecimal = f"{mantissa.rstrip('0').rstrip('.')}p{exponent}{'f' if single else ''}"
    return f"#define {name + ' ' + hexadecimal:<43} /* {value:.{9 if single else 17}g} */"


def main():
    for type_name in FORMATS:
        for name, value in logarithms(type_name).items():
            print(definition(name, value))
    for (name, type_name), fit in FITS.items():
        values, error = fitted(name, type_name)
        print(f"/* error 2**{error:.1f}, relative to {fit.of} */")
        for constant, value in values.items():
            print(definition(constant, value))


if __name__ == "__main__":
    main()
