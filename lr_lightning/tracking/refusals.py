"""What a server means that does not let one in, and what to do."""

import os

_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_UNKNOWN = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


def refusal(code: str | None, reason: str) -> str | None:
    """What is wrong with who asks, and the remedy; None where the server's own words say it best.

    Args:
        code: MLflow's name of the error.
        reason: What the server has said.
    """
    user = os.environ.get(_USER)
    if "Invalid Host header" in reason:  # also a 403, but not one of rights
        return (
            "the server does not go by this name. Start it with --allowed-hosts that has this host (with its port, if "
            "one is given here); a proxy before it must pass the Host header on."
        )
    if code in _UNKNOWN:
        who = f"it does not know the user {user!r} with this password" if user else "it asks for a user and a password"
        return f"{who}. Set {_USER} and {_PASSWORD}."
    if code == "PERMISSION_DENIED" and "ermission denied" in reason:
        who = f"the user {user!r}" if user else "this user"
        return (
            f"{who} may not do this. Ask its administrator for the right (EDIT, to write into an experiment of "
            "others), or give tracking.experiment=NAME, a new one."
        )
    return None
