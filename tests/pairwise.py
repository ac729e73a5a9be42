"""Few test cases that together hold every pair of values of any two factors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

Choice = tuple[str, int]


def all_pairs(
    factors: dict[str, list[Any]], excluded: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Cases with a value for each factor; `excluded` refuses a pair, given as a dict of two entries.

    Greedy: each case starts from a pair that no case holds yet and adds, factor by factor, the value
    that makes the most new pairs with those chosen (the one used least, where they tie).
    """

    def agree(a: Choice, b: Choice) -> bool:
        return not excluded({name: factors[name][i] for name, i in (a, b)})

    uncovered = {
        frozenset([(m, i), (n, j)]): None
        for m, n in combinations(factors, 2)
        for i in range(len(factors[m]))
        for j in range(len(factors[n]))
        if agree((m, i), (n, j))
    }
    uses = {(name, i): 0 for name, values in factors.items() for i in range(len(values))}
    cases = []
    while uncovered:
        chosen = dict(next(iter(uncovered)))
        for name, values in factors.items():
            if name in chosen:
                continue
            possible = [
                i for i in range(len(values)) if all(agree((name, i), other) for other in chosen.items())
            ]

            def merit(i: int, name=name, chosen=chosen) -> tuple[int, int]:
                new = sum(frozenset([(name, i), other]) in uncovered for other in chosen.items())
                return new, -uses[name, i]

            chosen[name] = max(possible, key=merit)
        for choice in chosen.items():
            uses[choice] += 1
        for pair in combinations(chosen.items(), 2):
            uncovered.pop(frozenset(pair), None)
        cases.append({name: factors[name][chosen[name]] for name in factors})
    return cases
