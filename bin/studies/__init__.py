"""Longer studies of the pocket world; commands for contributors."""
