"""Running a model under a placement."""
