"""Decisions: what a job needs next, given what is seen of it. Pure: nothing here does I/O or reads a clock.

``decide.py`` is the heart. ``views.py`` is what it sees, ``endings.py`` and ``starting.py`` judge pods,
``pod.py`` builds them, ``admission.py`` limits how many run, ``rows.py`` projects a job to its ProcessState row.
"""
