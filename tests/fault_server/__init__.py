"""A web that does all that servers are known to do to their clients, each thing at an address of its own."""
