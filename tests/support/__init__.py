"""What tests share: tiny real models, real servers, stacks and workers by hand.

No test file imports another one; what two of them need lives here.
"""
