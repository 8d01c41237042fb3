"""From a model script to a graph: load the script, export, make state explicit, refuse clearly."""
