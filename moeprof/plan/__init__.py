"""From a trace and a budget to a placement."""
