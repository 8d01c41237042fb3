"""Kernels and schedules for processors."""
