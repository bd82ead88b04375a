"""Manners towards the web of a test, all of which is one host, some of whose pictures never come."""

import json

MANNERS = {"per_domain_interval_s": 0, "host_failures": 1000, "retry_silent_hosts": True}
"""For FetchPolicy."""

SETTINGS = "".join(f"{name} = {json.dumps(value)}\n" for name, value in MANNERS.items())
"""The same, for the ``[fetch]`` table of a settings file."""
