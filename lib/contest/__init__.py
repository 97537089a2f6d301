"""The experiment of the chapter on matrix Gaussians: posteriors compared with everything else equal."""
