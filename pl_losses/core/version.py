"""The version, which the package's metadata take from here, and how its extras are installed."""

__version__ = "0.1.0"
# In messages. The package's name alone would only do once it is published.
EXTRA = "in a clone, `uv run --extra {0} pl-losses ...` or `pip install '.[{0}]'`"
