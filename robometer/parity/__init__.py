"""Parity with upstream: every recorded case computed by our code; see `robometer parity --help`."""
