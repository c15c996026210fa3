"""Renders a run; never measures."""
