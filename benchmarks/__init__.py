"""What auditing costs: sqlaudit, its peers and the floor, measured in one run. ``python -m benchmarks --help``."""
