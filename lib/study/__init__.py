"""The posterior at scale: one problem, a reference of independent networks, and approximate posteriors judged against it."""
