"""The only place with private names of other packages: each with what it is for, and what happens without it.

Tried with the lowest versions that ``pyproject.toml`` allows and with those that it pins.
``tests/core/test_compat.py`` looks for each name, so that a version without it fails there and not in a run.
"""
