"""Recording the routing of a model on text."""
