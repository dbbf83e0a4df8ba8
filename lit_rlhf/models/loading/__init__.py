"""Tokenizers and models from a local folder or a hub name, with every silent surprise turned into an error.

transformers fills missing weights with random numbers and prints a note; here a missing weight is a ``ValueError``.
Remote code is off unless asked for, and weights are tensors or they are refused (see ``models/checkpoint.py``).
"""
