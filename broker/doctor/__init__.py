"""`broker doctor`: looks at what a daemon and its workers need of a node, and says what mends what is missing.

It asks and tries; it changes nothing, and needs neither a daemon nor a GPU: what it could not look at, it says.
"""
