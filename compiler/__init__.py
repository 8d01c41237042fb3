"""The way through the house: capture, passes, engines, choice, artifact, and the command line."""
