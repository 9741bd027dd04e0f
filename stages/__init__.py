"""Before any package with threads is loaded: waiting threads sleep, since one that spins takes the core of another."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
