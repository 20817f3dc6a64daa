"""Benchmarks that refuse to state a speed-up unless the same run proved equivalence.

``cases`` says what is computed, ``opponents`` who computes it, ``worker`` is the process an opponent lives
in, ``harness`` runs the rounds, ``equivalence`` compares with float64, ``report`` prints and records."""
