"""One file per step, named `NNNN_what.py`; never changed once released."""
