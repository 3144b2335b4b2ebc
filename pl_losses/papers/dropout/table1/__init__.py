"""Gal and Ghahramani 2016, Table 1."""
