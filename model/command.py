"""What all commands share: an error is one sentence and exit status 2, never a traceback."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sentence_on_error(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turn the errors that a user can mend (ValueError, OSError) into one line on stderr and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")
