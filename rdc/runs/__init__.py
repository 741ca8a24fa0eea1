"""Bookkeeping of long runs: finished work, where results come from, the device."""
