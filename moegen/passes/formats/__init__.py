"""The three ways to store a route, one file each."""
