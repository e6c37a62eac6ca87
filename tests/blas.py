"""BLAS's own threads, as the process has them."""

import threadpoolctl


def blas_now():
    """Return the thread count of NumPy's own BLAS; SciPy and PyTorch bring others, which nothing here calls."""
    blas = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    own = [info for info in blas if "numpy" in info["filepath"]] or blas
    return {info["filepath"]: info["num_threads"] for info in own}
