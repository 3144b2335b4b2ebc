"""The front door: ``pl-losses`` on the command line."""
