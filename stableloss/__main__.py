"""``python -m stableloss``: which build runs here."""

import numpy as np

import stableloss
from stableloss import _cpu, _dispatch

print(f"stableloss {stableloss.__version__} ({stableloss.__file__})")
print(f"CPU levels built: {', '.join(_dispatch.built())}")
print(f"CPU levels supported here: {', '.join(_cpu.supported())}")
print(f"CPU level in use: {stableloss.cpu_level()}")
print(f"threads: {stableloss.get_num_threads()}")
print(f"numpy {np.__version__}")
