"""Programs that are measured; each runs in a process, and some in an environment, of its own."""
