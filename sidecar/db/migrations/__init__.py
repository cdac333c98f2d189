"""Alembic's environment (`env.py`) and the steps (`versions/`), one set for both databases."""
