"""The command line of the box, one file per group."""
