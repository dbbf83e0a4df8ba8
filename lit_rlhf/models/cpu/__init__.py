"""What serves the CPU alone: its kernels, its freed memory, the last layer at fewer positions."""
