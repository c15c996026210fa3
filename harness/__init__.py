"""The harness: accounting, measuring and reporting of the output-token cost gap."""
