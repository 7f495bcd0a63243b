"""What is done with a trained model: predict, sweep, export, report."""
