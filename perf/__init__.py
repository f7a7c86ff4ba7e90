"""The suites: a pytest case is a variant on a problem."""
