"""What this machine can run: the checks of `decodetax doctor`, and what they ask in other processes."""
