"""Everything needed to draw."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the importing Python may be older than the supported ones
    sys.exit("Python 3.11 or newer is required, not %d.%d; recreate the environment with it." % sys.version_info[:2])  # noqa: UP031
