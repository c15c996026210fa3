"""Fits the model of kernel times to measured kernels, and says how far from them it is."""
