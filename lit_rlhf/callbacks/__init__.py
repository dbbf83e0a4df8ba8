"""Monitors and gates, one file each; they plug into any Lightning trainer."""
