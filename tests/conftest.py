"""Shapes are checked in tests only: every annotated function of `lib` runs under jaxtyping and beartype here."""

import pytest
from jaxtyping import install_import_hook

install_import_hook("lib", "beartype.beartype")


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
