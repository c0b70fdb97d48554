"""What a machine can do, as frozen facts."""
