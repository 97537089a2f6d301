"""The experiments of *Optimising on the unit-norm manifold*: exact theory, a fair trial, bad starts, cost."""
