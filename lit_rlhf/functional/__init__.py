"""Pure tensor maths: no config, no logging, no I/O. One file an idea."""
