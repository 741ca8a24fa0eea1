"""Bookkeeping of runs: records, settings, hashes of inputs, atomic writes, provenance, device."""
