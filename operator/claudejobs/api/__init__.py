"""The contracts: the resource, the runner's event protocol and the ProcessState row.

Nothing here imports anything else of this project, so that the operator, the runner, the store and the
documentation generator can share it without pulling one another in.
"""
