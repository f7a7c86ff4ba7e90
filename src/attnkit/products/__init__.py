"""Products: ways to compute x ``[m, k]`` times a weight ``[n, k]`` transposed."""
