"""`broker top`: one daemon, live, on a terminal.

What is shown is worked out by `bars`, `recent`, `rows` and `panels`, from a status and the event stream alone; `feed` asks the
daemon, and `app` puts the one onto the screen and has keys.
"""
