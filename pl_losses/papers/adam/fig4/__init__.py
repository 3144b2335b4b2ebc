"""Kingma and Ba 2015, Fig. 4."""
