"""DeepSpeed ZeRO-2 on CUDA and CPU with safe checkpoints; atomic checkpoint I/O."""
