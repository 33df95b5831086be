"""The keys of the app, by group: one dataclass for each group, and a subclass for each choice that adds keys.

The comment above or beside a field is its documentation: `--help` and the page of all keys read it. A schema checks its
own values; `lr_lightning.app.config.Config` checks what groups require of each other.
"""
