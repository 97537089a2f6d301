"""Shapes are checked in tests only: every annotated function of `lib` runs under jaxtyping and beartype here."""

from jaxtyping import install_import_hook

install_import_hook("lib", "beartype.beartype")
