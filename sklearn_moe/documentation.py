"""The address of the guide, and the links to it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, metadata


@cache
def address_of_guide() -> str:
    """Return the "Documentation" address in the package's metadata, or "" if it has none."""
    try:
        addresses = metadata("sklearn-moe").get_all("Project-URL", [])
    except PackageNotFoundError:  # not installed
        return ""
    by_label = dict(each.split(", ", 1) for each in addresses)
    return by_label.get("Documentation", "").rstrip("/")


class Documented:
    """A class whose page in the guide the HTML of its objects links to, once there is an address.

    For scikit-learn, which shows no link if the address is empty.
    """

    _doc_link_module = "sklearn_moe"

    @property
    def _doc_link_template(self):
        address = address_of_guide()
        return f"{address}/generated/sklearn_moe.{{estimator_name}}.html" if address else ""
