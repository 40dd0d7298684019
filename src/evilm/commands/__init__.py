"""The subcommands of ``evilm``; ``evilm.cli`` lists their names and panels."""
