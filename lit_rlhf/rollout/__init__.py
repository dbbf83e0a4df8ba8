"""Generating experience: engines, the collector, micro-batches."""
