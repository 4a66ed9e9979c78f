"""Speed and memory, each against the plain reference in the same process."""
