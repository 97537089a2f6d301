"""The same work done by this package and by a peer, in one run: ``python -m benchmarks``."""
