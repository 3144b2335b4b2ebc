"""One package per paper: its losses, layers, module and what else belongs to it alone."""
