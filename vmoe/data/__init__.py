"""Images to train and test on, and the pipelines that feed them."""
