"""Receivers of finished spend records; `base.py` says what one is, one file each."""
