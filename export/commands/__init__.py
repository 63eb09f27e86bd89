"""The command line of the export, one module per command."""
