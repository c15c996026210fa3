"""Cases of peers' test suites, put to our kernels."""
