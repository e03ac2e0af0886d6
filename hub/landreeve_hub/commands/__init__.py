"""The command line of the hub, one file a group of commands."""
