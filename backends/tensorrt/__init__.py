"""Graphs as TensorRT engines: built for a named GPU on a machine without one."""
