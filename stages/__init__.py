"""Before any package with threads is loaded: how long a waiting thread spins before it sleeps.

One that only spins takes the core of another program; one that sleeps at once is late for the next of many small
products (benchmarks/results/generation.md). What the user has set stays.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's OpenMP, which torch and llama.cpp have; some microseconds
