"""Everything needed to draw."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - what imports this may be older than what the rest is written for
    sys.exit("Python 3.11 or newer is needed, not %d.%d; make the environment with that." % sys.version_info[:2])  # noqa: UP031
