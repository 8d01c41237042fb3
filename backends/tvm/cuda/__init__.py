"""TVM for NVIDIA GPUs, built on machines that have none."""
