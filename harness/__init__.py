"""The harness: measures, models and reports the cost gap between an output and an input token."""
