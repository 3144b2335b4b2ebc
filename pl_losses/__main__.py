"""``python -m pl_losses``."""

import sys

from pl_losses.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
