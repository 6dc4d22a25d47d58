"""The marked operations, one family per file."""
