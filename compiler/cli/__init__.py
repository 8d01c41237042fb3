"""The command line: parses, calls the library, prints. No logic lives here."""
