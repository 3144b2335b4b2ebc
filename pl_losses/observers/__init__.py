"""What all monitors and run records share."""
