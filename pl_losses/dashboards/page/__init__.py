"""The page of a run, as one HTML file."""
