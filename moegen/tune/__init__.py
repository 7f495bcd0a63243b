"""Decisions: what a lowering costs, and which one to take."""
