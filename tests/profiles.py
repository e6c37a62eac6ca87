"""Variances of noise, entry by entry: equal ones, uneven ones, and such as no formula takes."""

import numpy as np

RNG = np.random.default_rng(0)
PROFILES = {
    "flat": np.ones((40, 60)),
    "rows": np.exp(2 * RNG.standard_normal(50))[:, np.newaxis] * np.ones((50, 70)),
    "rows and columns": np.exp(2 * RNG.standard_normal(50))[:, np.newaxis] * np.exp(RNG.standard_normal(70)),
    "entries": RNG.standard_t(3, (60, 50)) ** 2,
    "one entry": np.where(np.arange(2500).reshape(50, 50) == 77, 1e4, 1.0),
    "blocks": np.kron([[1.0, 10.0], [30.0, 1.0]], np.ones((20, 30))),
}
