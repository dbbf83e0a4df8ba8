"""Self-contained HTML pages and pictures of runs and reward models."""
