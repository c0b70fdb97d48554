"""The placement format: which expert lives in which tier."""
