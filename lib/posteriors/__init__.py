"""Approximate posteriors, one method a module, each returning parameter samples in the population layout."""
