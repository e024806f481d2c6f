"""One objective a file; `base.py` is the contract that they share."""
