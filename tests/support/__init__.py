"""Shared test support: tiny real models, real servers, stacks, and workers driven by the test.

No test file imports another one; code that several of them need is here.
"""
