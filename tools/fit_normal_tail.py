"""Fits the polynomial of kernels/normal_tail.h and prints its coefficients, lowest power first.

The tail of the normal distribution is Phi(-a) = exp(-a^2 / 2) S(q) / (a + K) with q = (a - K) / (a + K); S is
approximated for 0 <= a <= 13.25 with the smallest largest relative error, by Remez exchange. Needs mpmath.
"""

import mpmath as mp

K, LARGEST, DEGREE, GRID = mp.mpf("3.5"), mp.mpf("13.25"), 9, 400


def scaled_tail(q):
    a = K * (1 + q) / (1 - q)
    return (a + K) * mp.erfc(a / mp.sqrt(2)) / 2 * mp.exp(a * a / 2)


def alternating_peaks(errors):
    """Indices of the largest error of each run of one sign."""
    runs = [[0]]
    for i in range(1, len(errors)):
        if (errors[i] > 0) == (errors[runs[-1][-1]] > 0):
            runs[-1].append(i)
        else:
            runs.append([i])
    return [max(run, key=lambda i: abs(errors[i])) for run in runs]


def fit():
    low, high, terms = mp.mpf(-1), (LARGEST - K) / (LARGEST + K), DEGREE + 1
    at = [(low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * i / terms) for i in range(terms + 1)]
    grid = [low + (high - low) * (1 - mp.cos(mp.pi * i / GRID)) / 2 for i in range(GRID + 1)]
    for _ in range(6):
        system, values = mp.matrix(terms + 1), mp.matrix(terms + 1, 1)
        for i, q in enumerate(at):
            values[i] = scaled_tail(q)
            for j in range(terms):
                system[i, j] = q**j
            system[i, terms] = (-1) ** i * values[i]
        solution = mp.lu_solve(system, values)
        coefficients = [solution[j] for j in range(terms)]
        errors = [mp.polyval(coefficients[::-1], q) / scaled_tail(q) - 1 for q in grid]
        peaks = alternating_peaks(errors)
        if len(peaks) != terms + 1:
            break
        at = [grid[i] for i in peaks]
    return coefficients, max(abs(e) for e in errors)


if __name__ == "__main__":
    mp.mp.dps = 40
    found, error = fit()
    for c in found:
        print(mp.nstr(c, 12))
    print("largest relative error", mp.nstr(error, 3))
