"""Speed, sweeps and comparisons; results are in benchmarks/results."""
