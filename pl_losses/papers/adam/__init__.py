"""Kingma and Ba 2015, Adam: a method for stochastic optimization."""
