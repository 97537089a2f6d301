"""One population of trained networks, seen by all five papers at once: the experiments of chapter 7."""
