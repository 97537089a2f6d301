"""Symmetry in Weight Space: the mathematics behind the chapters, one idea a module."""
