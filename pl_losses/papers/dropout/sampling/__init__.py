"""Samples of any network's predictive distribution: an engine without Lightning."""
