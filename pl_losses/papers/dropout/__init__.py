"""Gal and Ghahramani 2016, Dropout as a Bayesian approximation."""
