"""Evidence that needs no GPU: counted traffic, compiled code, and what bounds a kernel."""
