"""The ``claudejobs`` command."""
