"""Numbers about a daemon for Prometheus: added up from events and effects, and told as text over a socket of their own."""
