"""Weighted lattices in log and max-plus algebra: an engine without Lightning."""
