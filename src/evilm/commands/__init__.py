"""The subcommands of ``evilm``, a file a family; ``evilm.cli`` holds the table of their names."""
