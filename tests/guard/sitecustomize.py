"""Read by every Python that starts with this folder on PYTHONPATH, as conftest.py sees to: the children of a test."""

import no_network

no_network.install()
