"""What a model's files say, without loading its weights."""
