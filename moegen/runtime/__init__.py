"""The runtime: schedules, compiled layers, and their cache."""
