"""Row solves with options as keywords, as tests write them."""

from wals_gpu.backends.solve import SolveOptions


def solve_rows(backend, terms, other, factors, *, prior=None, return_loss=False, spectrum=None, **options):
    """:meth:`Backend.solve_rows` with ``SolveOptions(**options)``."""
    return backend.solve_rows(
        terms, other, factors, SolveOptions(**options), prior=prior, return_loss=return_loss, spectrum=spectrum
    )
