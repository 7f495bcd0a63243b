"""From a checkpoint's arrays to a model's first weights."""
