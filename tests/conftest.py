"""What holds for every test: shapes are checked, and workers side by side have one thread each.

Every annotated function of `lib` runs under jaxtyping and beartype here. Threads of several workers would wait for each other on
the same cores. A test that is about threads, or about what several of them share, sets their number itself.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, and for what the tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from jaxtyping import install_import_hook

install_import_hook("lib", "beartype.beartype")


@pytest.fixture
def two_threads():
    """torch has two threads, in a worker too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def handed_over(monkeypatch):
    """Of some modules that draw: the figures that they hand over, as matplotlib has them; no time is spent on pages of them."""

    def of(*modules) -> list:
        from lib.plots import Shown

        figures = []

        def hand(fig, alt: str, caption: str) -> Shown:
            figures.append(fig)
            return Shown((), alt, caption)

        for module in modules:
            monkeypatch.setattr(module, "show", hand)
        return figures

    return of
