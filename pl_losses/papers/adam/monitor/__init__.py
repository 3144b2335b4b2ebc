"""What Adam's bias correction does to a run, and the callback that shows it."""
