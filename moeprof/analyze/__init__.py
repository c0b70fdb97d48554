"""Pure functions over counts: coverage, hot sets, overlap."""
