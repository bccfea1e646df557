"""The command line: flags in, one call into a room, result out."""
