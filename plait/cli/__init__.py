"""The command line. Each command is a few lines around what the same name does in Python."""

from __future__ import annotations

import sys

from plait.cli.app import app
from plait.errors import PlaitError

# isort: off
from plait.cli import training, using, models, corpora, proofs  # in the order in which help shows their commands
# isort: on

__all__ = ["app", "corpora", "main", "models", "proofs", "training", "using"]


def main() -> None:
    """Run a command; an error of plait's is one message and an exit code."""
    try:
        app(standalone_mode=True)
    except PlaitError as error:
        if str(error):
            print(f"plait: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(1)
