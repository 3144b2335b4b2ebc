"""What all monitors and records of runs share."""
