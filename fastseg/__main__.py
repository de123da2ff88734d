"""`python -m fastseg` is the `fastseg` command."""

import sys

from fastseg.cli import main

sys.exit(main())
