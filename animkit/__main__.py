"""`python -m animkit` is the command `animkit`."""
import sys

from .cli import main

sys.exit(main())
