"""The rows of `bin/check-gpu`; each runs in a process of its own."""
