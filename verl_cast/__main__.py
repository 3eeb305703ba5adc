"""`python -m verl_cast` is `verl-cast`."""

import sys

from verl_cast.tools.cli import main

sys.exit(main())
