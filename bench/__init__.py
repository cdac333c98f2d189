"""Benchmarks: what the gateway costs, measured by CPU time of its process so that a noisy machine matters little."""
