"""How a system gets onto sys.path: folders that a tool made, checkouts of the user's, what is installed."""
