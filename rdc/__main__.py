"""`python -m rdc`: the same as the command `rdc`."""

import sys

from rdc.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
