"""Products of sorted rows with their experts' weights."""
