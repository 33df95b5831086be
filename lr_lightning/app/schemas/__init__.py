"""Every key of the app, by group: one dataclass a group, a subclass for each choice that has keys of its own.

Only omegaconf is imported here. The comment above or beside a field is its documentation.
"""
