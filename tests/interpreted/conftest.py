"""These tests need Triton's interpreter, which is chosen when Triton is imported: tests/test_triton.py runs them in processes
of their own."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.route_cpu_ops()
else:
    collect_ignore_glob = ["*.py"]
