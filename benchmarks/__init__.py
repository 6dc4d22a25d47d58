"""Speed and memory of the online learners beside their peers; `python -m benchmarks --help`."""
